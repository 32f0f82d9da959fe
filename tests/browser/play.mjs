// Opens a player page in Chromium and reports what is seen and heard, one JSON object a line.
//
//   node play.mjs measure URL SCREENSHOT   plays, clicks the sound button, measures ten seconds, ends
//   node play.mjs quality URL SCREENSHOT   chooses the lowest quality in the menu, then Auto, and says how many lines the picture had
//   node play.mjs audit URL SCREENSHOT     reads the bars of each picture on the screen for twelve seconds, with how old the player takes it to be
//   node play.mjs follow URL SCREENSHOT    prints the player's state every 200 ms until stdin ends
//
// With ONLY_TCP in the environment the page sees no UDP candidates, as behind a firewall that lets no UDP through.

import process from 'node:process';
import { chromium } from 'playwright-core';

const [mode, url, screenshot] = process.argv.slice(2);
const MEASURE_MS = 10000;
const AUDIT_MS = 12000;
const JOIN_MS = 30000;
const SETTLE_MS = 8000;

const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: [
    '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--disable-sync',
  ],
});
const page = await browser.newPage({ viewport: { width: 1280, height: 800 } });
if (process.env.ONLY_TCP) {
  await page.addInitScript(() => {
    const set = RTCPeerConnection.prototype.setRemoteDescription;
    RTCPeerConnection.prototype.setRemoteDescription = function onlyTcp({ type, sdp }) {
      const kept = sdp.split('\r\n').filter((line) => !/^a=candidate:\S+ \d+ udp /i.test(line));
      return set.call(this, { type, sdp: kept.join('\r\n') });
    };
  });
}
const errors = [];
page.on('pageerror', (error) => errors.push(String(error)));
page.on('console', (message) => console.error(`[page] ${message.type()}: ${message.text()}`));

/** Runs in the page: reads the bars of each decoded frame, the tone, and the playout times. */
async function measure(milliseconds) {
  /** Of the times of picture and sound, the last five seconds count. */
  const SYNC_SAMPLES = 20;
  const stream = document.querySelector('video').srcObject;
  const BARS = 20;
  const numbers = [];
  let unreadable = 0;
  const processor = new MediaStreamTrackProcessor({ track: stream.getVideoTracks()[0].clone(), maxBufferSize: 90 });
  const reader = processor.readable.getReader();

  const read = async (frame) => {
    const { width, height } = frame.visibleRect;
    const pixels = new Uint8Array(frame.allocationSize());
    const [luma] = await frame.copyTo(pixels);
    let code = 0;
    for (let bar = 0; bar < BARS; bar += 1) {
      const x = Math.floor(((bar + 0.5) * width) / BARS);
      let sum = 0;
      for (let row = 0; row < 16; row += 1) {
        sum += pixels[luma.offset + (Math.floor(height / 6) + row - 8) * luma.stride + x];
      }
      code = code * 2 + (sum / 16 > 125 ? 1 : 0);
    }
    const number = code >> 4;
    const nibbles = (number & 15) + ((number >> 4) & 15) + ((number >> 8) & 15) + ((number >> 12) & 15);
    if (((nibbles + 5) & 15) === (code & 15)) numbers.push(number);
    else unreadable += 1;
  };

  const context = new AudioContext();
  await context.resume();
  const analyser = new AnalyserNode(context, { fftSize: 8192, smoothingTimeConstant: 0 });
  context.createMediaStreamSource(new MediaStream(stream.getAudioTracks())).connect(analyser);
  const spectrum = new Float32Array(analyser.frequencyBinCount);
  const tones = [];
  const offsets = [];
  const latencies = [];
  const sampler = setInterval(() => {
    analyser.getFloatFrequencyData(spectrum);
    const loudest = spectrum.indexOf(spectrum.reduce((a, b) => Math.max(a, b)));
    tones.push({ hertz: (loudest * context.sampleRate) / analyser.fftSize, decibels: spectrum[loudest] });
    const { videoPlayoutMs, audioPlayoutMs, latencyMs } = window.headwater.stats;
    if (videoPlayoutMs && audioPlayoutMs) offsets.push(videoPlayoutMs - audioPlayoutMs);
    if (latencyMs) latencies.push(latencyMs);
  }, 250);

  const until = performance.now() + milliseconds;
  const before = { ...window.headwater.stats, at: performance.now() };
  while (performance.now() < until) {
    const { value: frame, done } = await reader.read();
    if (done) break;
    await read(frame);
    frame.close();
  }
  // The player reads its figures four times a second.
  await new Promise((resolve) => { setTimeout(resolve, 300); });
  const after = { ...window.headwater.stats, at: performance.now() };
  clearInterval(sampler);
  await reader.cancel();

  const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
  const settled = offsets.slice(-SYNC_SAMPLES);
  const heard = tones.filter((tone) => tone.decibels > -60 && Math.abs(tone.hertz - 440) < 12).length;
  const steps = numbers.slice(1).map((number, index) => (number - numbers[index]) & 0xffff);
  return {
    seconds: (after.at - before.at) / 1000,
    decoded: after.frames - before.frames,
    read: numbers.length,
    unreadable,
    // One less than the frames that the publisher drew between the first and the last one read.
    span: steps.reduce((sum, step) => sum + (step < 0x8000 ? step : 0), 0),
    disorder: steps.filter((step) => step === 0 || step >= 0x8000).length,
    toneSamples: tones.length,
    toneHeard: heard,
    tone: median(tones.map((tone) => tone.hertz)),
    offsetSamples: settled.length,
    offsetMs: median(settled),
    latencyMs: median(latencies),
    stats: after,
  };
}

/** Runs in the page: of each picture on the screen its number, when it was read (Unix time, ms), and how old the player says it is (ms). */
async function audit(milliseconds) {
  const BARS = 20;
  const video = document.querySelector('video');
  const canvas = new OffscreenCanvas(BARS * 8, 8);
  const brush = canvas.getContext('2d', { willReadFrequently: true });
  const seen = [];
  const until = performance.now() + milliseconds;
  await new Promise((resolve) => {
    const see = (now, metadata) => {
      const at = performance.timeOrigin + performance.now();
      const age = window.headwater.latencyOf(now, metadata);
      brush.drawImage(video, 0, 0, video.videoWidth, video.videoHeight / 3, 0, 0, canvas.width, canvas.height);
      const { data } = brush.getImageData(0, 4, canvas.width, 1);
      let code = 0;
      for (let bar = 0; bar < BARS; bar += 1) code = code * 2 + (data[4 * (bar * 8 + 4)] > 125 ? 1 : 0);
      const number = code >> 4;
      const nibbles = (number & 15) + ((number >> 4) & 15) + ((number >> 8) & 15) + ((number >> 12) & 15);
      if (((nibbles + 5) & 15) === (code & 15) && age !== undefined) seen.push([number, at, age]);
      if (now < until) video.requestVideoFrameCallback(see);
      else resolve();
    };
    video.requestVideoFrameCallback(see);
  });
  return seen;
}

try {
  await page.goto(url);
  if (mode === 'measure') {
    await page.waitForFunction(() => window.headwater.state === 'live', null, { timeout: JOIN_MS });
    const muted = await page.evaluate(() => document.querySelector('video').muted);
    await page.getByRole('button', { name: 'Turn the sound on' }).click();
    const unmuted = await page.evaluate(() => !document.querySelector('video').muted);
    await page.keyboard.press('i');
    const statistics = await page.locator('#panel').isVisible();
    // Chromium collects sound until its output device runs and then plays 10 % faster until that is used up. What is left it takes back by
    // delaying pictures: half of what its mean over four seconds shows, as long as that is above 30 ms. That takes 10 to 15 s.
    await page.waitForFunction(() => window.headwater.stats.videoPlayoutMs, null, { timeout: JOIN_MS });
    await page.waitForTimeout(SETTLE_MS);
    const result = await page.evaluate(measure, MEASURE_MS);
    await page.screenshot({ path: screenshot });
    say({ muted, unmuted, statistics, errors, state: await page.evaluate(() => window.headwater.state), ...result });
  } else if (mode === 'audit') {
    await page.waitForFunction(() => window.headwater.state === 'live', null, { timeout: JOIN_MS });
    // Until it has run up to the live edge, which the player doesn't report either.
    await page.waitForTimeout(2000);
    const seen = await page.evaluate(audit, AUDIT_MS);
    await page.screenshot({ path: screenshot });
    say({ seen, errors });
    await page.close({ runBeforeUnload: false });
  } else if (mode === 'quality') {
    await page.waitForFunction(() => window.headwater.state === 'live', null, { timeout: JOIN_MS });
    const menu = page.getByRole('combobox', { name: 'Quality' });
    await menu.waitFor({ timeout: JOIN_MS });
    // It asks again when it is opened, which a script doesn't do with a click.
    await page.waitForFunction(() => { const { options } = document.getElementById('quality'); return options.length > 2; }, null, { timeout: JOIN_MS });
    const labels = await menu.locator('option').allTextContents();
    const lines = () => page.evaluate(() => document.querySelector('video').videoHeight);
    const comesTo = async (height) => page.waitForFunction((wanted) => document.querySelector('video').videoHeight === wanted, height, { timeout: JOIN_MS });
    const [highest, lowest] = [labels[1], labels.at(-1)].map((label) => parseInt(label, 10));
    await comesTo(highest);
    const seen = [await lines()];
    await menu.selectOption({ index: labels.length - 1 });
    await comesTo(lowest);
    seen.push(await lines());
    await menu.selectOption({ index: 0 });
    await comesTo(highest);
    seen.push(await lines());
    await page.screenshot({ path: screenshot });
    say({ labels, seen, errors, joins: await page.evaluate(() => window.headwater.joins) });
  } else {
    let ended = false;
    // The pauses between pictures on the screen that an eye may notice, with the time of their end.
    await page.evaluate(() => {
      const video = document.querySelector('video');
      window.pauses = [];
      let last;
      const see = (now) => {
        if (now - last > 100) window.pauses.push([Math.round(now), Math.round(now - last)]);
        last = now;
        video.requestVideoFrameCallback(see);
      };
      video.requestVideoFrameCallback(see);
    });
    process.stdin.on('end', () => { ended = true; }).resume();
    while (!ended) {
      say({ errors, ...await page.evaluate(() => ({
        at: performance.now(), state: window.headwater.state, joins: window.headwater.joins,
        frames: window.headwater.stats.frames ?? 0, stats: window.headwater.stats,
        text: document.getElementById('cover-text').textContent, history: window.headwater.history, pauses: window.pauses,
      })) });
      await new Promise((resolve) => { setTimeout(resolve, 200); });
    }
    await page.screenshot({ path: screenshot });
    // Runs the page's own farewell, which deletes its session.
    await page.close({ runBeforeUnload: false });
  }
} catch (error) {
  await page.screenshot({ path: screenshot }).catch(() => {});
  say({ failed: String(error), errors, headwater: await page.evaluate(() => window.headwater).catch(() => null) });
  process.exitCode = 1;
} finally {
  await browser.close();
}
