// Server-sent events of a session (the WHEP extension), read with fetch: EventSource cannot send a token in a header.

const RELATION = 'urn:ietf:params:whep:ext:core:server-sent-events';
/**
 * Browsers open six connections to a host, and one page may show many players: so none holds one for long. What is to be said is said
 * again to whoever comes later.
 */
const OPEN_MS = 4000;
const PAUSE_MS = 4000;
const PAUSE_MAX_MS = 32_000;

/** The target of a link of this relation, if the answer has one (RFC 8288). */
export function linked(response, relation) {
  for (const link of (response.headers.get('Link') ?? '').split(/,(?=\s*<)/)) {
    const [, target, parameters] = /^\s*<([^>]*)>(.*)$/.exec(link) ?? [];
    if (target && parameters.includes(`rel="${relation}"`)) return new URL(target, response.url).href;
  }
  return null;
}

export const eventsUrl = (response) => linked(response, RELATION);

/** Calls `handle(name, data)` for each event of the kinds named, until `signal` aborts. */
export async function listen(url, names, headers, signal, handle) {
  let location = null;
  let pauseMs = PAUSE_MS;
  // An edge that has just come doesn't know the others yet, so that "not found" needn't be the end, which the signal tells.
  const unknown = (response) => { pauseMs = response.status === 404 ? Math.min(2 * pauseMs, PAUSE_MAX_MS) : PAUSE_MS; };
  while (!signal.aborted) {
    const within = AbortSignal.any([signal, AbortSignal.timeout(OPEN_MS)]);
    try {
      if (!location) {
        const created = await fetch(url, {
          method: 'POST', headers: headers({ 'Content-Type': 'application/json' }), body: JSON.stringify(names), signal: within,
        });
        unknown(created);
        const target = created.headers.get('Location');
        if (created.ok && target) location = new URL(target, created.url);
      }
      if (location) {
        const response = await fetch(location, { headers: headers({ Accept: 'text/event-stream' }), cache: 'no-store', signal: within });
        unknown(response);
        if (response.ok) await read(response.body, handle);
      }
    } catch { /* The time is over, or the way is broken: again, below. */ }
    await new Promise((resolve) => { setTimeout(resolve, pauseMs * (0.5 + Math.random())); });
  }
}

/** As much of the HTML Standard's section 9.2.6 as a server that writes one `data` line needs. */
async function read(body, handle) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split('\n\n');
    text = blocks.pop();
    for (const block of blocks) {
      const field = (name) => block.split('\n').find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
      const name = field('event');
      if (name) handle(name, JSON.parse(field('data') ?? '{}'));
    }
  }
}
