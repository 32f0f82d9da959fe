// What the viewer sees, told to the edge that asks for it: by a link in the answer to the offer, twice a minute, and when the page is left.
//
// `played` is the time in which there should have been pictures: the page is seen, nobody paused it, and somebody publishes. `frozen` is the
// part of it in which they stood still, as the browser has it (webrtc-stats, totalFreezesDuration), or were away because the session was lost.
// A browser may decode nothing while the page is hidden, and calls that a freeze when it ends: what was before the page was shown doesn't count.

import { linked } from './events.js';

const RELATION = 'urn:headwater:qoe';
const FIRST_MS = 10000;
const EVERY_MS = 30000;
/** Of one frame a second it is measured how old it is. */
const SAMPLE_MS = 1000;
const SAMPLES_MAX = 60;
/** From a session's first frame, which may be as old as the newest keyframe was, until it has run up to the live edge. */
const RUN_UP_MS = 2000;
/** A timer that is later than this was stopped with the machine. */
const TICK_MAX_MS = 2000;
const INTERRUPTION_MAX_MS = 120000;

/** Where reports are wanted, if they are. */
export const reportsUrl = (response) => linked(response, RELATION);

export class Experience {
  #video;
  #headers;
  #latencyOf;
  #url = null;
  #dueAt = performance.now() + FIRST_MS;
  #seen = Experience.#nothing();
  /** When the page was hidden and shown last. */
  #hiddenAt = performance.now();
  #shownAt = performance.now();
  /** The request whose first frame is awaited, and since when there is a pause that ends with that frame. */
  #askedAt = null;
  #lostAt = null;
  #last = null;
  /** When the next frame is measured; of a session that has shown none yet it is the first. */
  #sampleAt = 0;
  #unseen = true;
  #armed = false;
  /** Of the newest frame that was measured. */
  #newest = null;

  /** `latencyOf(now, metadata)` says how old a frame is that is shown. */
  constructor(video, headers, latencyOf) {
    [this.#video, this.#headers, this.#latencyOf] = [video, headers, latencyOf];
    document.addEventListener('visibilitychange', () => this.#turn());
  }

  static #nothing() {
    return { firstFrame: undefined, played: 0, frozen: 0, freezes: 0, latencies: [] };
  }

  /** How old pictures are on the screen; undefined when none was measured of late. */
  get latencyMs() {
    return this.#newest && performance.now() - this.#newest.at < 2 * SAMPLE_MS ? this.#newest.latency : undefined;
  }

  /** A session is shown. Where it goes on from one that still played, nobody waits for its first frame. */
  begin(session, { moved, lost }) {
    if (session.reports !== this.#url) this.flush();
    this.#url = session.reports;
    // In a hidden tab nobody waits.
    this.#askedAt = moved || document.hidden ? null : session.askedAt;
    this.#lostAt = null;
    if (lost && this.#last && !document.hidden) {
      const { at, movedAt } = this.#last;
      this.#lostAt = Math.max(at, this.#shownAt);
      // The browser counts a freeze when it ends, and this one didn't in the session that it began in.
      this.#seen.frozen += Math.max(0, at - Math.max(movedAt, this.#shownAt));
    }
    [this.#last, this.#unseen] = [null, true];
    this.#arm();
  }

  /** Time goes by: `state` is what the page showed since the last call, `stats` what the session has counted. */
  tick(session, state, stats) {
    const now = performance.now();
    const watched = !document.hidden && !this.#video.paused;
    const before = this.#last;
    const playing = state === 'live' || state === 'reconnecting';
    const frames = stats.frames ?? 0;
    const still = playing && before?.session === session && frames > 0 && frames === before.frames;
    const movedAt = still ? before.movedAt : now;
    this.#last = { at: now, session, watched, frames, movedAt, freezes: stats.freezes ?? 0, frozen: 1000 * (stats.frozenSeconds ?? 0) };
    if (before?.session === session && before.watched && watched && playing) {
      this.#seen.played += Math.min(TICK_MAX_MS, now - before.at);
      const frozen = Math.max(0, this.#last.frozen - before.frozen);
      this.#seen.frozen += Math.min(frozen, now - this.#shownAt);
      this.#seen.freezes += Math.max(0, this.#last.freezes - before.freezes);
    }
    if (now >= this.#sampleAt) this.#arm();
    if (now >= this.#dueAt) this.flush();
  }

  /** Says what there is to say. */
  flush() {
    const seen = this.#seen;
    if (!this.#url || (seen.played < 1 && seen.firstFrame === undefined)) return;
    this.#seen = Experience.#nothing();
    // Players that began together shall not report together.
    this.#dueAt = performance.now() + EVERY_MS * (0.75 + Math.random() / 2);
    const whole = (value) => (value === undefined ? undefined : Math.max(0, Math.round(value)));
    fetch(this.#url, {
      method: 'POST',
      headers: this.#headers({ 'Content-Type': 'application/json' }),
      keepalive: true,
      body: JSON.stringify({
        first_frame_ms: whole(seen.firstFrame),
        played_ms: whole(seen.played),
        frozen_ms: whole(seen.frozen),
        freezes: seen.freezes,
        latency_ms: seen.latencies.map(whole),
      }),
    }).catch(() => {});
  }

  /** The page is hidden, or shown again. */
  #turn() {
    const now = performance.now();
    if (document.hidden) {
      this.#hiddenAt = now;
      this.#askedAt = null;
      if (this.#last) this.#last.watched = false;
      return;
    }
    this.#shownAt = now;
    if (this.#lostAt !== null) this.#lostAt += now - this.#hiddenAt;
  }

  #arm() {
    if (this.#armed || !this.#video.requestVideoFrameCallback) return;
    this.#armed = true;
    this.#video.requestVideoFrameCallback((now, metadata) => {
      this.#armed = false;
      this.#see(now, metadata);
    });
  }

  #see(now, metadata) {
    if (this.#askedAt !== null) this.#seen.firstFrame = now - this.#askedAt;
    if (this.#lostAt !== null) {
      const away = Math.min(INTERRUPTION_MAX_MS, now - this.#lostAt);
      this.#seen.played += away;
      this.#seen.frozen += away;
      this.#seen.freezes += 1;
    }
    [this.#askedAt, this.#lostAt] = [null, null];
    this.#sampleAt = now + (this.#unseen ? RUN_UP_MS : SAMPLE_MS);
    if (this.#unseen) {
      this.#unseen = false;
      return;
    }
    const latency = this.#latencyOf(now, metadata);
    if (latency === undefined) return;
    this.#newest = { at: now, latency };
    if (this.#seen.latencies.length < SAMPLES_MAX) this.#seen.latencies.push(latency);
  }
}
