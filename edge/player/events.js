// Server-sent events of a session (the WHEP extension), read with fetch: EventSource cannot send a token in a header.

const RELATION = 'urn:ietf:params:whep:ext:core:server-sent-events';
/** The stream of events broke, though the session goes on. */
const AGAIN_MS = 3000;

/** The target of a link of this relation, if the answer has one (RFC 8288). */
export function linked(response, relation) {
  for (const link of (response.headers.get('Link') ?? '').split(/,(?=\s*<)/)) {
    const [, target, parameters] = /^\s*<([^>]*)>(.*)$/.exec(link) ?? [];
    if (target && parameters.includes(`rel="${relation}"`)) return new URL(target, response.url).href;
  }
  return null;
}

export const eventsUrl = (response) => linked(response, RELATION);

/** Calls `handle(name, data)` for each event of the kinds named, until `signal` aborts or the session is gone. */
export async function listen(url, names, headers, signal, handle) {
  while (!signal.aborted) {
    try {
      const created = await fetch(url, {
        method: 'POST', headers: headers({ 'Content-Type': 'application/json' }), body: JSON.stringify(names), signal,
      });
      if (created.status === 404) return;
      const location = created.headers.get('Location');
      if (created.ok && location) {
        const response = await fetch(new URL(location, created.url), { headers: headers({ Accept: 'text/event-stream' }), cache: 'no-store', signal });
        if (response.status === 404) return;
        if (response.ok) await read(response.body, handle);
      }
    } catch { /* Again, below. */ }
    await new Promise((resolve) => { setTimeout(resolve, AGAIN_MS * (0.5 + Math.random())); });
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
