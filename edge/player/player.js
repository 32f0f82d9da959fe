// The player: joins by WHEP, watches its own frames and comes back by itself.
//
// States: connecting, waiting (no publisher yet), live, held (joined, but the publisher paused), reconnecting (the edge
// or the way to it is gone), problem (a reason that a person must read), forbidden, stopped (the page is hidden away).
// `window.headwater` shows state and figures to tests and to the curious.

import { eventsUrl, listen } from './events.js';
import { Experience, reportsUrl } from './qoe.js';
import { Quality, layerUrl } from './quality.js';

const [app, stream] = location.pathname.replace(/^\/play\//, '').split('/');
const name = `${app ?? ''}/${stream ?? ''}`;
// Names need no escaping (A-Z a-z 0-9 . _ ~ -), so the path is taken as it stands.
const endpoint = `/whep/${name}`;
// A token in the fragment never reaches a server log; the query is there for links that lose fragments.
const token = new URLSearchParams(location.hash.slice(1)).get('token') ?? new URLSearchParams(location.search).get('token');

const TICK_MS = 250;
/** Silence after which the session is asked about. Chromium itself says "disconnected" only after 7 s. */
const SILENT_MS = 2000;
/** Sound comes many times a second: without any for so long it has ended too, perhaps with the edge. */
const SOUNDS_MS = 1000;
/** Packets without a picture for so long: the decoder does not recover by itself, a new session does. */
const STUCK_MS = 8000;
/** From the answer to the first picture or packet of sound. */
const JOIN_MS = 10000;
/** From the first picture of a session that another one goes over to, until it has run up to the live edge. */
const RUN_UP_MS = 1000;
/** How the server's own problems begin (RFC 9457). */
const OURS = 'urn:headwater:problem:';
const BACKOFF_MS = { first: 300, max: 8000 };
const CAPTURE_TIME = 'http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time';
const NTP_UNIX_MS = 2208988800000;

const $ = (id) => document.getElementById(id);
const [stage, video, sound] = [$('stage'), $('video'), $('sound')];
const headers = (more = {}) => (token ? { ...more, Authorization: `Bearer ${token}` } : more);
const quality = new Quality($('quality'), headers);

const headwater = { state: 'connecting', stats: {}, joins: 0, history: [], latencyOf: undefined };
window.headwater = headwater;

const WORDS = {
  connecting: ['Connecting', 'Connecting…', ''],
  waiting: ['Waiting', 'Waiting for the publisher', 'This stream is not live yet. It starts here by itself.'],
  live: ['Live', '', ''],
  held: ['Waiting', 'Waiting for the publisher', 'The publisher paused. The picture continues here by itself.'],
  reconnecting: ['Reconnecting', 'Reconnecting…', 'The connection to the server was lost.'],
  problem: ['Problem', 'This stream cannot be shown', ''],
  forbidden: ['No access', 'You may not watch this stream', 'It needs a valid token in the address: …#token=TOKEN'],
  stopped: ['Stopped', 'Stopped', ''],
};

function show(state, detail) {
  const [badge, title, text] = WORDS[state];
  if (headwater.state !== state) headwater.history.push({ state, at: Math.round(performance.now()) });
  if (headwater.history.length > 200) headwater.history.shift();
  headwater.state = state;
  stage.dataset.state = state;
  $('badge').dataset.state = state;
  $('badge').textContent = badge;
  $('cover-title').textContent = title;
  $('cover-text').textContent = detail ?? text;
  $('spinner').hidden = state === 'problem' || state === 'forbidden' || state === 'stopped';
  $('retry').hidden = !(state === 'problem' || state === 'forbidden');
}

const sleep = (ms, signal) => new Promise((resolve) => {
  const timer = setTimeout(resolve, ms);
  signal?.addEventListener('abort', () => { clearTimeout(timer); resolve(); }, { once: true });
});
/** Full jitter: a thousand players whose edge died must not come back in one instant. */
const backoff = (attempt) => {
  const ceiling = Math.min(BACKOFF_MS.max, BACKOFF_MS.first * 2 ** attempt);
  return ceiling * (0.5 + Math.random() / 2);
};
const retryAfterMs = (response, fallback) => {
  const seconds = Number.parseFloat(response.headers.get('Retry-After'));
  return Math.min(30000, Math.max(500, Number.isFinite(seconds) ? seconds * 1000 : fallback));
};

/** The server's words, as a sentence. */
function sentence(text) {
  if (!text) return undefined;
  const capital = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(capital) ? capital : `${capital}.`;
}

/** A refusal by the server, in words, with what to do next. */
class Refused extends Error {
  constructor(state, detail, retryMs) {
    super(detail);
    Object.assign(this, { state, detail, retryMs });
  }
}

async function refusal(response) {
  let problem = {};
  try {
    if (response.headers.get('Content-Type')?.includes('json')) problem = await response.json();
  } catch { /* The status alone has to do. */ }
  const detail = sentence(problem.detail ?? problem.title);
  switch (true) {
    case String(problem.type ?? '').endsWith('b-frames'):
      return new Refused('problem', detail ?? 'The publisher sends B-frames, which WebRTC cannot show.', 5000);
    case response.status === 409:
      // Up to half a second more, so that many waiting players do not ask in step.
      return new Refused('waiting', undefined, retryAfterMs(response, 2000) + Math.random() * 500);
    case response.status === 401 || response.status === 403:
      return new Refused('forbidden', token ? 'The token in the address is not valid for this stream.' : undefined);
    case response.status === 404 && String(problem.type ?? '').startsWith(OURS):
      return new Refused('problem', detail ?? `There is no stream named ${name}.`);
    case response.status === 404 || response.status === 408:
      // A proxy that has nobody to ask at the moment, or an offer that took too long on its way.
      return new Refused('reconnecting', undefined, 3000 + Math.random() * 1000);
    case response.status === 429 || response.status === 503:
      return new Refused('reconnecting', detail ?? 'The server is busy; trying again.', retryAfterMs(response, 3000) + Math.random() * 1000);
    case response.status >= 500:
      return new Refused('reconnecting', detail ?? 'The server has a problem; trying again.', 3000 + Math.random() * 1000);
    default:
      return new Refused('problem', detail ?? `The server refused with status ${response.status}.`);
  }
}

/** One WHEP session: a peer connection and its URL on the edge. */
class Session {
  /** With `again` whoever is asked shall not send us elsewhere: perhaps we were sent, and it was no good there. */
  static async join(url, signal, again = false) {
    const session = new Session();
    try {
      await session.#negotiate(url, signal, again);
      return session;
    } catch (error) {
      session.close();
      throw error;
    }
  }

  url = null;
  /** The WHEP endpoint it was joined at, and with what wishes. */
  endpoint = null;
  query = '';
  layer = null;
  /** When its offer left, and where the server wants to hear of it. */
  askedAt = performance.now();
  reports = null;
  /** Where the server wants it to go on. */
  invitation = null;
  #over = new AbortController();
  tracks = { video: false, audio: false };

  constructor() {
    this.pc = new RTCPeerConnection({ bundlePolicy: 'max-bundle' });
    this.media = new MediaStream();
    this.pc.addEventListener('track', ({ track }) => this.media.addTrack(track));
  }

  async #negotiate(url, signal, again) {
    for (const kind of ['video', 'audio']) {
      const transceiver = this.pc.addTransceiver(kind, { direction: 'recvonly' });
      // With the capture time in the packets, latency is measured instead of guessed.
      if (transceiver.setHeaderExtensionsToNegotiate) {
        try {
          transceiver.setHeaderExtensionsToNegotiate(transceiver.getHeaderExtensionsToNegotiate()
            .map((extension) => (extension.uri === CAPTURE_TIME ? { ...extension, direction: 'sendrecv' } : extension)));
        } catch { /* An older browser: latency is estimated. */ }
      }
    }
    const offer = await this.pc.createOffer();
    // Browsers decode Opus in mono unless the offer asks for stereo (RFC 7587 section 6.1).
    const opus = /a=rtpmap:(\d+) opus\/48000\/2/i.exec(offer.sdp)?.[1];
    const sdp = opus
      ? offer.sdp.replace(new RegExp(`(a=fmtp:${opus} [^\\r\\n]*)`), (line) => (line.includes('stereo=') ? line : `${line};stereo=1`))
      : offer.sdp;
    await this.pc.setLocalDescription({ type: 'offer', sdp });
    // The edge is ICE-lite and learns our address from our checks: there is no candidate to wait for.
    headwater.joins += 1;
    [this.endpoint, this.query, this.askedAt] = [url, quality.query, performance.now()];
    const stay = again ? `${this.query ? '&' : '?'}sent-by=player` : '';
    const response = await fetch(`${url}${this.query}${stay}`, {
      method: 'POST',
      headers: headers({ 'Content-Type': 'application/sdp' }),
      body: this.pc.localDescription.sdp,
      signal: AbortSignal.any([signal, AbortSignal.timeout(10000)]),
    });
    if (!response.ok) throw await refusal(response);
    const location = response.headers.get('Location');
    if (location) this.url = new URL(location, response.url).href;
    this.layer = layerUrl(response);
    this.reports = reportsUrl(response);
    await this.pc.setRemoteDescription({ type: 'answer', sdp: await response.text() });
    for (const { receiver, currentDirection } of this.pc.getTransceivers()) {
      if (currentDirection === 'recvonly') this.tracks[receiver.track.kind] = true;
    }
    const events = eventsUrl(response);
    if (events) {
      listen(events, ['reconnect'], headers, this.#over.signal, (name, { url: there }) => {
        if (name === 'reconnect' && there) this.invitation = new URL(there, response.url).href;
      });
    }
  }

  /** Shows it: the element goes from one track to the next without a pause, as it would not from one stream to the next. */
  show() {
    const before = shown.getTracks();
    for (const track of this.media.getTracks()) shown.addTrack(track);
    for (const track of before) if (!this.media.getTracks().includes(track)) shown.removeTrack(track);
    if (video.srcObject !== shown) video.srcObject = shown;
  }

  /** Whether an edge still knows the session: true, false, or undefined when none answers. 504: another one does, but not the one that had it. */
  async known(signal) {
    if (!this.url) return undefined;
    try {
      const response = await fetch(this.url, {
        headers: headers(), cache: 'no-store', signal: AbortSignal.any([signal, AbortSignal.timeout(2500)]),
      });
      if (response.ok) return true;
      return [404, 410, 504].includes(response.status) ? false : undefined;
    } catch {
      return undefined;
    }
  }

  close() {
    this.#over.abort();
    this.pc.close();
    if (!this.url) return;
    // `keepalive` lets the request outlive the page.
    fetch(this.url, { method: 'DELETE', headers: headers(), keepalive: true }).catch(() => {});
    this.url = null;
  }
}

/** What getStats says, boiled down to what the page shows and the watchdog needs. */
class Meter {
  #last = null;
  #clockOffsetsMs = [];
  rates = new Array(60).fill(0);
  #rateAt = 0;

  async read(session) {
    const report = await session.pc.getStats();
    const one = (test) => [...report.values()].find(test);
    const picture = one((s) => s.type === 'inbound-rtp' && s.kind === 'video');
    const tone = one((s) => s.type === 'inbound-rtp' && s.kind === 'audio');
    const transport = one((s) => s.type === 'transport');
    const pair = report.get(transport?.selectedCandidatePairId) ?? one((s) => s.type === 'candidate-pair' && s.nominated);
    const codec = (rtp) => report.get(rtp?.codecId);
    const at = performance.now();
    const bytes = (picture?.bytesReceived ?? 0) + (tone?.bytesReceived ?? 0);
    const now = {
      at,
      bytes,
      packets: (picture?.packetsReceived ?? 0) + (tone?.packetsReceived ?? 0),
      // Without what came by RTX: while there is sound alone, the edge probes the link with such packets.
      videoPackets: (picture?.packetsReceived ?? 0) - (picture?.retransmittedPacketsReceived ?? 0),
      frames: picture?.framesDecoded ?? 0,
      lost: (picture?.packetsLost ?? 0) + (tone?.packetsLost ?? 0),
      buffered: picture?.jitterBufferDelay ?? 0,
      emitted: picture?.jitterBufferEmittedCount ?? 0,
      checks: pair?.responsesReceived ?? 0,
    };
    const before = this.#last ?? now;
    const seconds = Math.max(1e-3, (now.at - before.at) / 1000);
    const first = !this.#last;
    // Figures over less than half a second jump about: keep the older base until then.
    if (first || seconds >= 0.5) this.#last = now;
    const rttMs = pair?.currentRoundTripTime !== undefined ? pair.currentRoundTripTime * 1000 : undefined;
    const bufferMs = now.emitted > before.emitted ? (1000 * (now.buffered - before.buffered)) / (now.emitted - before.emitted) : undefined;
    this.#noteClock(report, rttMs ?? 0);
    const measured = this.latency(session);
    const estimated = bufferMs !== undefined && rttMs !== undefined ? bufferMs + rttMs / 2 : undefined;
    const old = headwater.stats;
    const fresh = seconds >= 0.45;
    const stats = {
      frames: now.frames,
      packets: now.packets,
      videoPackets: now.videoPackets,
      checks: now.checks,
      width: picture?.frameWidth,
      height: picture?.frameHeight,
      fps: fresh ? (now.frames - before.frames) / seconds : old.fps,
      bitrate: fresh ? (8 * (now.bytes - before.bytes)) / seconds : old.bitrate,
      latencyMs: measured ?? estimated ?? old.latencyMs,
      latencyKind: measured !== undefined ? 'measured' : 'estimated',
      rttMs,
      bufferMs: bufferMs ?? old.bufferMs,
      jitterMs: picture?.jitter !== undefined ? picture.jitter * 1000 : undefined,
      lost: now.lost,
      nack: picture?.nackCount,
      pli: picture?.pliCount,
      repaired: picture?.retransmittedPacketsReceived,
      dropped: picture?.framesDropped,
      freezes: picture?.freezeCount,
      frozenSeconds: picture?.totalFreezesDuration,
      videoCodec: codec(picture)?.mimeType?.split('/')[1],
      videoProfile: /profile-level-id=([0-9a-f]{6})/i.exec(codec(picture)?.sdpFmtpLine ?? '')?.[1],
      audioCodec: codec(tone)?.mimeType?.split('/')[1],
      audioChannels: /\bstereo=1\b/.test(codec(tone)?.sdpFmtpLine ?? '') ? 2 : codec(tone)?.channels,
      path: pair ? `${report.get(pair.remoteCandidateId)?.address ?? '?'}:${report.get(pair.remoteCandidateId)?.port ?? '?'} ${report.get(pair.remoteCandidateId)?.protocol ?? ''}` : undefined,
      videoPlayoutMs: picture?.estimatedPlayoutTimestamp,
      audioPlayoutMs: tone?.estimatedPlayoutTimestamp,
    };
    if (at - this.#rateAt >= 1000) {
      this.#rateAt = at;
      this.rates.push(stats.bitrate ?? 0);
      this.rates.shift();
    }
    return stats;
  }

  /** Each sender report tells the edge's clock; the quickest of the last ones is nearest to the truth. */
  #noteClock(report, rttMs) {
    for (const s of report.values()) {
      if (s.type !== 'remote-outbound-rtp' || !s.remoteTimestamp) continue;
      const seen = `${s.id}${s.remoteTimestamp}`;
      if (this.#clockOffsetsMs.some((entry) => entry.seen === seen)) continue;
      this.#clockOffsetsMs.push({ seen, offset: s.timestamp - s.remoteTimestamp - rttMs / 2 });
      if (this.#clockOffsetsMs.length > 20) this.#clockOffsetsMs.shift();
    }
  }

  /**
   * How long ago the edge's origin had read a frame: the one that `shown` says (its time on the screen, and its RTP timestamp), or the newest
   * when it came out of the decoder.
   */
  latency(session, shown) {
    if (!this.#clockOffsetsMs.length) return undefined;
    const offset = Math.min(...this.#clockOffsetsMs.map((entry) => entry.offset));
    for (const receiver of session.pc.getReceivers()) {
      if (receiver.track.kind !== 'video') continue;
      const source = receiver.getSynchronizationSources?.()[0];
      if (source?.captureTimestamp === undefined) continue;
      const captured = source.captureTimestamp > 3e12 ? source.captureTimestamp - NTP_UNIX_MS : source.captureTimestamp;
      const ahead = shown ? ((shown.rtpTimestamp - source.rtpTimestamp) | 0) / 90 : 0;
      // Of another session, from which it goes over to this one.
      if (Math.abs(ahead) > 5000) return undefined;
      // The timestamp counts from the page's start in some browsers, from 1970 in others.
      const delivered = source.timestamp < 1e12 ? performance.timeOrigin + source.timestamp : source.timestamp;
      const at = shown ? performance.timeOrigin + shown.now : delivered;
      const latency = at - offset - captured - ahead;
      if (latency > -50 && latency < 60000) return Math.max(0, latency);
    }
    return undefined;
  }
}

/** What the page plays, whichever session it comes from. */
const shown = new MediaStream();

let session = null;
let meter = new Meter();
headwater.latencyOf = (now, { rtpTimestamp }) => (session && rtpTimestamp !== undefined ? meter.latency(session, { now, rtpTimestamp }) : undefined);
const experience = new Experience(video, headers, headwater.latencyOf);
let lifetime = new AbortController();

/** Joins, watches, joins again; ends only by `lifetime`. */
async function run() {
  const { signal } = lifetime;
  let attempt = 0;
  let joined = null;
  let next = null;
  // Where we were last: the edge that this page came from may be gone for good.
  let last = endpoint;
  let failures = 0;
  show('connecting');
  while (!signal.aborted) {
    try {
      const moved = Boolean(next);
      const again = failures % 2 === 1;
      joined = next ?? await Session.join(again ? endpoint : last, signal, again);
      [next, last, failures] = [null, joined.endpoint, 0];
      if (signal.aborted) break;
      session = joined;
      joined.show();
      meter = new Meter();
      experience.begin(session, { moved, lost: headwater.state === 'reconnecting' });
      quality.follow(session.layer, session.query);
      // Who paused it still has it paused.
      if (!moved || !video.paused) video.play().catch(() => render());
      const left = await watch(session, signal);
      if (signal.aborted) {
        left.next?.close();
        break;
      }
      next = left.next;
      if (next) {
        // Shown before the old one is closed, below.
        next.show();
        continue;
      }
      const { played } = left;
      failures += 1;
      // A session that never played counts as a failed attempt, or two broken ends would spin.
      attempt = played ? 0 : attempt + 1;
    } catch (error) {
      if (signal.aborted) break;
      failures += 1;
      if (error instanceof Refused) {
        show(error.state, error.detail);
        if (error.retryMs === undefined) return;
        attempt = 0;
        await sleep(error.retryMs, signal);
        continue;
      }
      console.info('joining failed:', error);
      // "Connecting" stays for the first tries; after that a person wants to know.
      if (headwater.state !== 'connecting' || attempt > 1) show('reconnecting');
      attempt += 1;
    } finally {
      // After a restart `session` may be the next run's already.
      joined?.close();
      if (session === joined) {
        session = null;
        quality.follow(null);
      }
      joined = null;
    }
    await sleep(backoff(attempt), signal);
  }
}

/** Joins where the server sends us, and resolves once that plays at the live edge: until then the old session goes on. */
async function prepare(url, seen, signal) {
  const next = await Session.join(url, signal);
  const unseen = document.createElement('video');
  try {
    unseen.muted = true;
    unseen.srcObject = next.media;
    unseen.play().catch(() => {});
    const until = performance.now() + JOIN_MS;
    const came = async () => [...(await next.pc.getStats()).values()].some((s) => s.type === 'inbound-rtp'
      // Where no picture is decoded now, none will be there: in a hidden tab, or on a link that carries sound alone.
      && (next.tracks.video && seen ? s.framesDecoded > 0 : s.packetsReceived > 0));
    while (!await came()) {
      if (signal.aborted || performance.now() > until) throw new Error('no media came from there');
      await sleep(50, signal);
    }
    await sleep(RUN_UP_MS, signal);
    if (signal.aborted) throw new Error('the page is being left');
    return next;
  } catch (error) {
    next.close();
    throw error;
  } finally {
    unseen.srcObject = null;
  }
}

/** Follows one session until it has to be left. Resolves to whether it ever played, and the session to go on with, if there is one. */
async function watch(joined, signal) {
  const { pc } = joined;
  let [frames, packets, videoPackets, checks] = [0, 0, 0, 0];
  let [frameAt, packetAt, videoPacketAt, checkAt] = Array(4).fill(performance.now());
  const joinedAt = performance.now();
  let played = false;
  let next = null;
  let moving = null;
  let moveAt = 0;
  let refused = 0;
  let askAt = 0;
  let unanswered = 0;
  while (!signal.aborted) {
    await sleep(TICK_MS, signal);
    if (signal.aborted) break;
    const stats = await meter.read(joined);
    const now = performance.now();
    if (stats.frames > frames) [frames, frameAt] = [stats.frames, now];
    if (stats.packets > packets) [packets, packetAt] = [stats.packets, now];
    if (stats.videoPackets > videoPackets) [videoPackets, videoPacketAt] = [stats.videoPackets, now];
    if (stats.checks > checks) [checks, checkAt] = [stats.checks, now];
    experience.tick(joined, headwater.state, stats);
    if (experience.latencyMs !== undefined) Object.assign(stats, { latencyMs: experience.latencyMs, latencyKind: 'measured' });
    headwater.stats = stats;

    const plays = joined.tracks.video ? frameAt > joinedAt && now - frameAt < SILENT_MS : packets > 0 && now - packetAt < SILENT_MS;

    if (next) break;
    if (joined.invitation && !moving && now >= moveAt) {
      // Perhaps there is no way to that one from here, or it is full: then whoever answers at our own address will do.
      moving = prepare(refused % 2 ? endpoint : joined.invitation, plays && !document.hidden, signal)
        .then((session) => { next = session; })
        .catch((error) => {
          console.info('going over failed:', error);
          refused += 1;
          moveAt = performance.now() + (error.retryMs ?? backoff(refused));
        })
        .finally(() => { moving = null; });
    }

    if (plays) {
      if (headwater.state !== 'live') show('live');
      stage.dataset.frames = 'yes';
      played = true;
      unanswered = 0;
      askAt = 0;
    }
    render();
    if (plays) continue;

    if (pc.connectionState === 'failed' || pc.connectionState === 'closed') {
      show('reconnecting');
      break;
    }
    const silent = now - packetAt >= SILENT_MS;
    if (!silent) {
      // Packets come. A hidden tab decodes nothing in some browsers, and that is no fault.
      const stuck = joined.tracks.video && now - videoPacketAt < SILENT_MS && now - Math.max(frameAt, joinedAt) > STUCK_MS;
      if (stuck && !document.hidden) {
        show('reconnecting', 'The picture did not come back by itself.');
        break;
      }
      const sounds = now - packetAt < SOUNDS_MS;
      if (joined.tracks.video && now - videoPacketAt >= SILENT_MS && sounds && played) show('held', 'The connection is too slow for pictures at the moment; the sound goes on.');
      continue;
    }
    if (now < askAt) continue;
    // Silence has two causes that look alike from here: the publisher paused, or the edge is gone. Ask.
    const known = await joined.known(signal);
    if (signal.aborted) break;
    if (known === false) {
      show('reconnecting');
      break;
    }
    if (known === undefined) {
      unanswered += 1;
      show('reconnecting');
      askAt = now + backoff(unanswered);
      continue;
    }
    unanswered = 0;
    // The edge knows us, so the publisher paused; unless its UDP no longer answers, as behind a rebound NAT.
    const deaf = now - checkAt > 9000 || pc.connectionState === 'disconnected' || (!played && pc.connectionState !== 'connected' && now - joinedAt > JOIN_MS);
    if (deaf) {
      show('reconnecting', 'No media arrives: a firewall may block UDP.');
      break;
    }
    if (pc.connectionState === 'connected') show('held');
    askAt = now + 2000 + Math.random() * 2000;
  }
  // The session that we were sent to may be all that is left.
  if (!signal.aborted) await moving;
  return { played, next };
}

// --- what the page shows -------------------------------------------------------------------------------------------

const fixed = (value, digits, unit) => (Number.isFinite(value) ? `${value.toFixed(digits)} ${unit}`.trim() : '–');

let drawnAt = 0;
function render() {
  stage.dataset.paused = video.paused ? 'yes' : 'no';
  stage.dataset.muted = video.muted || video.volume === 0 ? 'yes' : 'no';
  $('play').setAttribute('aria-label', video.paused ? 'Play' : 'Pause');
  $('mute').setAttribute('aria-label', video.muted ? 'Unmute' : 'Mute');
  if (session && !session.tracks.audio) stage.dataset.sound = 'none';
  else if (video.muted && stage.dataset.sound !== 'chosen') stage.dataset.sound = 'offer';
  const s = headwater.stats;
  // Numbers that change four times a second cannot be read.
  if (performance.now() - drawnAt < 500) return;
  drawnAt = performance.now();
  const live = headwater.state === 'live';
  const size = s.width ? `${s.width}×${s.height}` : '';
  $('figures').replaceChildren(...(live ? [
    [Number.isFinite(s.latencyMs) ? `${s.latencyKind === 'estimated' ? '≈ ' : ''}${Math.round(s.latencyMs)} ms` : '', ''],
    [size, ''],
    [Number.isFinite(s.bitrate) ? fixed(s.bitrate / 1e6, 1, 'Mbit/s') : '', 'wide'],
    [Number.isFinite(s.fps) && session?.tracks.video ? fixed(s.fps, 0, 'fps') : '', 'wide'],
  ] : []).filter(([text]) => text).flatMap(([text, className], index) => {
    const span = document.createElement('span');
    span.className = className;
    span.textContent = `${index ? ' · ' : ''}${text}`;
    return [span];
  }));
  if (!$('panel').hidden) renderPanel(s);
}

function renderPanel(s) {
  const rows = [
    ['State', headwater.state],
    [s.latencyKind === 'measured' ? 'Latency' : 'Latency (estimate)', fixed(s.latencyMs, 0, 'ms')],
    ['Resolution', s.width ? `${s.width} × ${s.height}` : '–'],
    ['Frames', `${fixed(s.fps, 1, 'fps')} · ${s.frames ?? 0}`],
    ['Bitrate', fixed(s.bitrate / 1e6, 2, 'Mbit/s')],
    ['Video', [s.videoCodec, s.videoProfile].filter(Boolean).join(' ') || '–'],
    ['Audio', [s.audioCodec, s.audioChannels === 2 ? 'stereo' : ''].filter(Boolean).join(' ') || '–'],
    ['Round trip', fixed(s.rttMs, 1, 'ms')],
    ['Jitter', fixed(s.jitterMs, 1, 'ms')],
    ['Jitter buffer', fixed(s.bufferMs, 0, 'ms')],
    ['Packets lost', `${s.lost ?? 0} of ${(s.packets ?? 0) + Math.max(0, s.lost ?? 0)}`],
    ['Repaired', s.repaired ?? '–'],
    ['NACK · PLI', `${s.nack ?? 0} · ${s.pli ?? 0}`],
    ['Frames dropped', s.dropped ?? 0],
    ['Freezes', `${s.freezes ?? 0} · ${fixed(s.frozenSeconds ?? 0, 1, 's')}`],
    ['Joins', headwater.joins],
    ['Server', s.path ?? '–'],
  ];
  const list = $('stats');
  if (list.childElementCount !== rows.length * 2) {
    list.replaceChildren(...rows.flatMap(() => [document.createElement('dt'), document.createElement('dd')]));
  }
  rows.forEach(([label, value], index) => {
    list.children[2 * index].textContent = label;
    list.children[2 * index + 1].textContent = String(value);
  });
  const canvas = $('graph');
  const scale = Math.max(1, window.devicePixelRatio || 1);
  const [width, height] = [canvas.clientWidth * scale, canvas.clientHeight * scale];
  if (canvas.width !== Math.round(width)) [canvas.width, canvas.height] = [Math.round(width), Math.round(height)];
  const brush = canvas.getContext('2d');
  brush.clearRect(0, 0, canvas.width, canvas.height);
  const top = Math.max(1e5, ...meter.rates) * 1.1;
  const step = canvas.width / meter.rates.length;
  brush.fillStyle = '#4cc9c0';
  meter.rates.forEach((rate, index) => {
    const tall = (rate / top) * canvas.height;
    brush.globalAlpha = 0.35 + (0.65 * index) / meter.rates.length;
    brush.fillRect(index * step, canvas.height - tall, Math.max(1, step - scale), tall);
  });
}

// --- controls ------------------------------------------------------------------------------------------------------

const act = {
  play() {
    if (video.paused) video.play().catch(() => {});
    else video.pause();
  },
  mute() {
    stage.dataset.sound = 'chosen';
    video.muted = !video.muted;
    if (!video.muted && video.volume === 0) video.volume = 1;
    if (!video.muted) video.play().catch(() => { video.muted = true; });
  },
  fullscreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else if (stage.requestFullscreen) stage.requestFullscreen().catch(() => {});
    else video.webkitEnterFullscreen?.(); // iPhones put only the video itself on the full screen.
  },
  info() {
    const panel = $('panel');
    panel.hidden = !panel.hidden;
    $('info').setAttribute('aria-expanded', String(!panel.hidden));
    drawnAt = 0;
    render();
  },
};

$('play').addEventListener('click', act.play);
$('mute').addEventListener('click', act.mute);
sound.addEventListener('click', act.mute);
$('fullscreen').addEventListener('click', act.fullscreen);
$('info').addEventListener('click', act.info);
$('panel-close').addEventListener('click', act.info);
$('retry').addEventListener('click', () => restart());
$('volume').addEventListener('input', (event) => {
  stage.dataset.sound = 'chosen';
  video.volume = Number(event.target.value);
  video.muted = video.volume === 0;
});
video.addEventListener('volumechange', () => {
  $('volume').value = video.muted ? 0 : video.volume;
  render();
});
for (const event of ['play', 'pause']) video.addEventListener(event, render);
document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const onControl = event.target.closest?.('button, input, select, a');
  const action = { m: act.mute, f: act.fullscreen, i: act.info, ' ': act.play }[event.key.toLowerCase()];
  // Space on a focused button already presses it.
  if (!action || (event.key === ' ' && onControl)) return;
  event.preventDefault();
  action();
  wake();
});

let sleepTimer;
/** Shows the controls; they go again when nothing moves and nobody has the keyboard in them. */
function wake() {
  stage.dataset.controls = 'shown';
  clearTimeout(sleepTimer);
  sleepTimer = setTimeout(() => {
    const held = video.paused || headwater.state !== 'live' || $('controls').matches(':hover') || $('controls').querySelector(':focus-visible');
    if (!held) stage.dataset.controls = 'hidden';
    else wake();
  }, 3000);
}
for (const event of ['pointermove', 'pointerdown', 'focusin']) stage.addEventListener(event, wake);
stage.addEventListener('pointerleave', () => { if (headwater.state === 'live' && !video.paused) stage.dataset.controls = 'hidden'; });

function restart() {
  lifetime.abort();
  lifetime = new AbortController();
  show('connecting');
  run();
}

// Leaving frees the session on the edge at once, instead of after its consent timeout.
addEventListener('pagehide', () => {
  experience.flush();
  lifetime.abort();
  session?.close();
  session = null;
  show('stopped');
});
addEventListener('pageshow', (event) => { if (event.persisted) restart(); });
addEventListener('online', () => { if (headwater.state === 'reconnecting') restart(); });

$('title').textContent = name;
document.title = `${stream ?? ''} · Headwater`;
render();
wake();
if (app && stream) run();
else show('problem', 'The address of a player page is /play/app/stream.');
