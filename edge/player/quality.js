// The quality menu: which renditions the stream has, and which of them the viewer wants (the WHEP layer extension).

import { linked } from './events.js';

const RELATION = 'urn:ietf:params:whep:ext:core:layer';
/** Renditions come and go seldom, and the menu asks when it is opened. */
const REFRESH_MS = 15000;
/** Until the edge knows the renditions and their bitrates. */
const FIRST_MS = 1500;

/** The layer URL of an answer, if the server has the extension. */
export const layerUrl = (response) => linked(response, RELATION);

const megabits = (bitrate) => (bitrate >= 95e4 ? `${(bitrate / 1e6).toFixed(1)} Mbit/s` : `${Math.round(bitrate / 1e3)} kbit/s`);

export class Quality {
  #select;
  #headers;
  #url = null;
  #timer;
  /** What the viewer chose; it outlives sessions. */
  #chosen = new URLSearchParams(location.search).get('rendition') ?? '';

  constructor(select, headers) {
    this.#select = select;
    this.#headers = headers;
    select.addEventListener('change', () => this.#choose(select.value));
    select.addEventListener('pointerdown', () => this.#refresh());
    select.addEventListener('focus', () => this.#refresh());
  }

  /** What a join asks for: the choice so far, and what the page's address says of the link. */
  get query() {
    const query = new URLSearchParams();
    if (this.#chosen) query.set('rendition', this.#chosen);
    const bandwidth = new URLSearchParams(location.search).get('bandwidth');
    if (bandwidth) query.set('bandwidth', bandwidth);
    return query.size ? `?${query}` : '';
  }

  /** A session began that was joined with this query, or the last one is over (null). */
  follow(url, query) {
    clearTimeout(this.#timer);
    this.#url = url;
    if (url) this.#timer = setTimeout(() => this.#refresh(), FIRST_MS);
    // Something else was chosen while it was being joined.
    if (!url) this.#select.hidden = true;
    else if (query !== this.query) this.#choose(this.#chosen);
  }

  async #choose(value) {
    this.#chosen = value;
    const body = value ? { encodingId: value } : {};
    await this.#ask({ method: 'POST', headers: this.#headers({ 'Content-Type': 'application/json' }), body: JSON.stringify(body) });
  }

  async #refresh() {
    clearTimeout(this.#timer);
    if (!document.hidden) await this.#ask({ headers: this.#headers(), cache: 'no-store' });
    if (this.#url) this.#timer = setTimeout(() => this.#refresh(), REFRESH_MS);
  }

  async #ask(request) {
    const url = this.#url;
    if (!url) return;
    try {
      const response = await fetch(url, request);
      // Another session may have begun meanwhile.
      if (response.ok && url === this.#url) this.#show(await response.json());
    } catch { /* The next time. */ }
  }

  #show({ encodings, pinned }) {
    const options = [['', 'Auto'], ...encodings.toReversed().map(({ encodingId, height, bitrate }) => [
      encodingId, `${height}p${bitrate ? ` · ${megabits(bitrate)}` : ''}`])];
    if (this.#select.options.length !== options.length) this.#select.replaceChildren(...options.map(() => document.createElement('option')));
    options.forEach(([value, label], index) => Object.assign(this.#select.options[index], { value, label, text: label }));
    this.#select.value = pinned ?? '';
    this.#select.hidden = encodings.length < 2 && !pinned;
  }
}
