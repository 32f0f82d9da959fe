// Opens a node's admin page in Chromium and does what an operator does. Prints one JSON object.
//
//   node admin.mjs edge URL PREFIX     looks at viewers, filters and sorts, kicks the first one, drains the node
//   node admin.mjs origin URL PREFIX   kicks the publisher
//   node admin.mjs crowd URL PREFIX    the same page, told of two thousand viewers and of names that are no names
//
// Screenshots are put at PREFIX-….png.

import process from 'node:process';
import { chromium } from 'playwright-core';

const [mode, url, prefix] = process.argv.slice(2);
const WAIT_MS = 15000;

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});
const page = await browser.newPage({ viewport: { width: 1440, height: 900 } });
const errors = [];
// The node's token, for which the first command asks.
page.on('dialog', (dialog) => dialog.accept('open-sesame'));
page.on('pageerror', (error) => errors.push(String(error)));
page.on('console', (message) => { if (message.type() === 'error' && !/status of 401/.test(message.text())) errors.push(message.text()); });

const HOSTILE = '<img src=x onerror="window.broken=1"><script>window.broken=1</script>';
const rows = (table) => page.locator(`#${table} tbody tr`);
const cells = async (table) => {
  const found = await rows(table).all();
  return Promise.all(found.map((row) => row.locator('th, td').allTextContents()));
};
const column = async (at) => (await cells('viewers')).map((row) => row[at]);

async function look(name) {
  for (const scheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme: scheme });
    for (const [size, width, height] of [['wide', 1440, 900], ['narrow', 390, 844]]) {
      await page.setViewportSize({ width, height });
      await page.screenshot({ path: `${prefix}-${name}-${scheme}-${size}.png`, fullPage: size === 'narrow' });
    }
  }
  await page.emulateMedia({ colorScheme: 'light' });
  await page.setViewportSize({ width: 1440, height: 900 });
}

async function confirm(button) {
  await page.getByRole('dialog').getByRole('button', { name: button, exact: true }).click();
}

/** Answers of a node that thousands watch, and whose streams, encoders and nodes call themselves what they like. */
async function crowd() {
  const viewers = Array.from({ length: 2000 }, (_, at) => ({
    id: at + 1, stream: at % 2 ? 'live/a' : HOSTILE, rendition: at % 3 ? '720p' : null, track: 1, state: 'connected', transport: 'udp', peer: `10.0.${at >> 8}.${at & 255}`,
    age_seconds: at, bytes: at * 1000, packets: at, nacks: 0, resent: at % 7, plis: 0, rtt_ms: at % 300, loss_permille: at % 50, receive_bits_per_second: 0,
    estimate_bits_per_second: 2_000_000 + at, switches: at % 4,
  }));
  const answers = {
    nodes: [{ id: HOSTILE, role: 'edge', load: 0.93, draining: false, streams: [HOSTILE], version: HOSTILE, public_url: HOSTILE, here: true }],
    streams: [{ name: HOSTILE, publishing: true, viewers: 1000, peer: HOSTILE, encoder: HOSTILE, epoch: 1, problem: HOSTILE, tracks: [{ rendition: HOSTILE, width: 1, height: 1, bits_per_second: 1 }] }],
    viewers,
  };
  for (const [what, list] of Object.entries(answers)) {
    await page.route(`**/api/v1/${what}`, (route) => route.fulfill({ json: { time_ms: Date.now(), [what]: list } }));
  }
}

try {
  if (mode === 'crowd') await crowd();
  const answer = await page.goto(url);
  const policy = answer.headers()['content-security-policy'];
  await page.locator('#status[data-state=good]').waitFor({ timeout: WAIT_MS });
  const seen = { policy };
  if (mode === 'edge') {
    await page.waitForFunction(() => document.querySelectorAll('#viewers tbody tr').length >= 3, null, { timeout: WAIT_MS });
    // A rate is known from the third answer on at the latest.
    await page.waitForFunction(() => /bit\/s/.test(document.getElementById('tile-sent').textContent), null, { timeout: WAIT_MS });
    Object.assign(seen, { nodes: await cells('nodes'), streams: await cells('streams'), viewers: await cells('viewers') });
    await look('edge');
    await page.getByLabel('Filter').fill(`${seen.viewers[0][0]} live/`);
    seen.filtered = await column(0);
    await page.getByLabel('Filter').fill('nothing of the kind');
    seen.none = await page.locator('#viewers + .empty').isVisible();
    await page.getByLabel('Filter').fill('');
    const byNumber = page.getByRole('button', { name: 'Viewer', exact: true });
    await byNumber.click();
    seen.ascending = await column(0);
    seen.sorted = await page.locator('#viewers th[aria-sort]').getAttribute('aria-sort');
    await byNumber.click();

    const [victim] = await column(0);
    await page.getByRole('button', { name: `Kick viewer ${victim}`, exact: true }).click();
    await confirm('Cancel');
    seen.cancelled = (await column(0)).includes(victim);
    // By keyboard, as not everybody has a mouse.
    await page.getByRole('button', { name: `Kick viewer ${victim}`, exact: true }).focus();
    await page.keyboard.press('Enter');
    await page.screenshot({ path: `${prefix}-edge-confirm.png` });
    await confirm('Kick');
    await page.waitForFunction((id) => ![...document.querySelectorAll('#viewers tbody th')].some((cell) => cell.textContent === id), victim, { timeout: WAIT_MS });
    seen.kicked = await page.locator('#toast').textContent();

    await page.getByRole('button', { name: 'Drain this node' }).click();
    await confirm('Drain');
    await page.locator('#status[data-state=draining]').waitFor({ timeout: WAIT_MS });
    seen.drained = await page.locator('#toast').textContent();
    await page.locator('#status[data-state=silent]').waitFor({ timeout: 2 * WAIT_MS });
    seen.end = await page.locator('#status').textContent();
    // What the browser says of a node that is gone.
    errors.splice(0, errors.length, ...errors.filter((text) => !/ERR_CONNECTION|ERR_EMPTY_RESPONSE|status of 503/.test(text)));
  } else if (mode === 'origin') {
    const kick = page.getByRole('button', { name: /^Kick the publisher of / });
    await kick.waitFor({ timeout: WAIT_MS });
    Object.assign(seen, { nodes: await cells('nodes'), streams: await cells('streams') });
    await look('origin');
    await kick.click();
    await confirm('Kick publisher');
    await page.locator('#toast').waitFor({ timeout: WAIT_MS });
    seen.kicked = await page.locator('#toast').textContent();
  } else {
    await rows('viewers').first().waitFor({ timeout: WAIT_MS });
    seen.rows = await rows('viewers').count();
    seen.count = await page.locator('#viewers-count').textContent();
    await look('crowd');
    await page.getByRole('button', { name: 'Loss', exact: true }).click();
    seen.losses = await column(5);
    await page.getByRole('button', { name: 'Next page' }).click();
    seen.page = await page.locator('#page').textContent();
    await page.getByLabel('Filter').fill('10.0.7.20 live/a');
    seen.filtered = await page.locator('#viewers-count').textContent();
    Object.assign(seen, await page.evaluate(() => ({
      broken: window.broken ?? null,
      markup: document.querySelectorAll('table img, table script').length,
      text: document.querySelector('#streams tbody th').textContent,
    })));
  }
  console.log(JSON.stringify({ errors, ...seen }));
} catch (error) {
  await page.screenshot({ path: `${prefix}-failed.png` }).catch(() => {});
  console.log(JSON.stringify({ failed: String(error), errors }));
  process.exitCode = 1;
} finally {
  await browser.close();
}
