// What the player reports (edge/player/qoe.js), on a clock of its own: who turns to another tab isn't shown a picture that stands still.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test from 'node:test';

const source = readFileSync(new URL('../../edge/player/qoe.js', import.meta.url), 'utf8');
// Of the other module nothing is needed but a name, and Node takes a file called .js in that folder for no module.
const { Experience } = await import(`data:text/javascript,${encodeURIComponent(source.replace(/^import .*$/m, ''))}`);

/** A page with a player, whose clock stands until it is told. */
class Page {
  now = 1000;
  reports = [];
  #frame = null;
  #turned = null;
  #stats = { frames: 0, freezes: 0, frozenSeconds: 0 };
  #session = null;

  constructor() {
    const page = this;
    globalThis.performance = { now: () => page.now };
    globalThis.document = { hidden: false, addEventListener: (_, handler) => { page.#turned = handler; } };
    globalThis.fetch = async (_, { body }) => { page.reports.push(JSON.parse(body)); };
    const video = { paused: false, requestVideoFrameCallback: (see) => { page.#frame = see; } };
    this.experience = new Experience(video, (headers) => headers, () => 100);
  }

  begin(lost = false) {
    this.#session = { reports: 'http://edge/qoe', askedAt: this.now };
    this.#stats = { frames: 0, freezes: 0, frozenSeconds: 0 };
    this.experience.begin(this.#session, { moved: false, lost });
  }

  /** Plays for so long, or stands still, with the figures read four times a second. */
  pass(milliseconds, { frames = true, state = 'live' } = {}) {
    for (const until = this.now + milliseconds; this.now < until;) {
      this.now += 250;
      if (frames) this.show();
      this.experience.tick(this.#session, state, { ...this.#stats });
    }
  }

  /** A frame comes. A hidden page shows none. */
  show() {
    this.#stats.frames += 1;
    if (document.hidden) return;
    const see = this.#frame;
    this.#frame = null;
    see?.(this.now, {});
  }

  /** A freeze ends, as the browser has it. */
  freeze(seconds) {
    this.#stats.freezes += 1;
    this.#stats.frozenSeconds += seconds;
  }

  turn(hidden) {
    document.hidden = hidden;
    this.#turned();
  }

  report() {
    this.experience.flush();
    return this.reports.reduce((sum, { played_ms: played, frozen_ms: frozen, first_frame_ms: first }) => ({
      played: sum.played + played, frozen: sum.frozen + frozen, first: sum.first ?? first,
    }), { played: 0, frozen: 0, first: undefined });
  }
}

test('a freeze counts as what the browser says', () => {
  const page = new Page();
  page.begin();
  page.pass(5000);
  page.freeze(0.75);
  page.pass(5000);
  const { played, frozen, first } = page.report();
  assert.equal(first, 250);
  assert.equal(played, 9750);
  assert.equal(frozen, 750);
});

test('time away counts neither as played nor as frozen, though the browser decoded nothing meanwhile', () => {
  const page = new Page();
  page.begin();
  page.pass(5000);
  page.turn(true);
  page.pass(30000, { frames: false });
  page.turn(false);
  // The next keyframe is half a second off.
  page.pass(500, { frames: false });
  page.freeze(30.75);
  page.pass(5000);
  const { played, frozen } = page.report();
  assert.equal(played, 10000);
  assert.ok(frozen <= 1000, `frozen ${frozen}`);
});

test('a look at another tab between two readings counts as nothing', () => {
  const page = new Page();
  page.begin();
  page.pass(5000);
  page.turn(true);
  // Timers of hidden pages may be held back for a minute.
  page.now += 40000;
  page.freeze(40);
  page.turn(false);
  page.pass(1000);
  assert.deepEqual(page.report(), { played: 5500, frozen: 0, first: 250 });
});

test('nobody waits for the first frame of a page that was hidden', () => {
  const page = new Page();
  page.begin();
  page.pass(500, { frames: false, state: 'connecting' });
  page.turn(true);
  page.pass(20000, { frames: false, state: 'connecting' });
  page.turn(false);
  page.pass(2000);
  assert.equal(page.report().first, undefined);
});

test('a session that was lost counts as frozen for as long as the page was seen', () => {
  const page = new Page();
  page.begin();
  page.pass(5000);
  page.begin(true);
  page.now += 1000;
  page.turn(true);
  page.now += 60000;
  page.turn(false);
  page.now += 500;
  page.show();
  const { played, frozen } = page.report();
  assert.equal(frozen, 1500);
  assert.equal(played, 4750 + 1500);
});

test('one that was lost while the page was hidden counts from when it was shown', () => {
  const page = new Page();
  page.begin();
  page.pass(5000);
  page.turn(true);
  page.pass(10000, { frames: false });
  page.turn(false);
  page.now += 200;
  page.begin(true);
  page.now += 300;
  page.show();
  assert.equal(page.report().frozen, 500);
});
