// The page for operators: reads this node's API every two seconds, and sends its commands.
//
// What publishers and viewers supply (names, encoders, addresses) only ever becomes text of an element, never markup. Of the viewers, one page
// of rows is in the document at a time, so that thousands of them cost no more than sorting a list.

const PERIOD_MS = 2000;
const ROWS = 50;
/** Of nodes and streams, of which there are fewer, so many rows are in the document. */
const ROWS_MAX = 200;
const DASH = '–';

const $ = (id) => document.getElementById(id);
const number = (value) => (typeof value === 'number' && Number.isFinite(value) ? value : undefined);
const plural = (count, noun) => `${count.toLocaleString('en')} ${noun}${count === 1 ? '' : 's'}`;

function rate(bits) {
  if (bits === undefined || bits === null) return DASH;
  if (bits >= 1e9) return `${(bits / 1e9).toFixed(2)} Gbit/s`;
  if (bits >= 1e6) return `${(bits / 1e6).toFixed(2)} Mbit/s`;
  return `${Math.round(bits / 1000)} kbit/s`;
}

function span(seconds) {
  if (seconds === undefined || seconds === null) return DASH;
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor((seconds % 3600) / 60)];
  if (hours >= 24) return `${Math.floor(hours / 24)} d ${hours % 24} h`;
  if (hours) return `${hours} h ${String(minutes).padStart(2, '0')} min`;
  return minutes ? `${minutes} min ${String(Math.floor(seconds % 60)).padStart(2, '0')} s` : `${Math.floor(seconds)} s`;
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

/** Touches the document only where something is different: a selection and a screen reader's place survive. */
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** A table whose rows are kept as long as what they show is there, and that is sorted by its head's buttons. */
class Table {
  #columns;
  #rows = new Map();
  #sort;
  #changed;

  constructor(table, { caption, columns, sort, empty, changed }) {
    [this.#columns, this.#sort, this.#changed] = [columns, sort, changed];
    this.empty = element('p', empty, 'empty');
    this.body = element('tbody');
    table.append(this.#head(), this.body);
    table.setAttribute('aria-label', caption);
    table.after(this.empty);
    this.#mark();
  }

  #head() {
    const line = element('tr');
    for (const column of this.#columns) {
      const cell = element('th', undefined, column.number ? 'number' : '');
      cell.scope = 'col';
      column.head = cell;
      if (column.value) {
        const button = element('button', column.title);
        button.type = 'button';
        if (column.hint) button.title = column.hint;
        button.addEventListener('click', () => this.#sortBy(column));
        cell.append(button);
      } else {
        cell.append(element('span', column.title));
      }
      line.append(cell);
    }
    const head = element('thead');
    head.append(line);
    return head;
  }

  #sortBy(column) {
    const same = this.#sort.key === column.key;
    // Of figures, the large ones are of interest first.
    this.#sort = { key: column.key, down: same ? !this.#sort.down : Boolean(column.number) };
    this.#mark();
    this.#changed();
  }

  #mark() {
    for (const { key, head } of this.#columns) {
      if (key === this.#sort.key) head.setAttribute('aria-sort', this.#sort.down ? 'descending' : 'ascending');
      else head.removeAttribute('aria-sort');
    }
  }

  /** In the order that is chosen; what has no value comes last, and equals stay in the order they had. */
  sorted(items) {
    const { value } = this.#columns.find(({ key }) => key === this.#sort.key);
    const sign = this.#sort.down ? -1 : 1;
    const keyed = items.map((item) => [value(item), item]);
    keyed.sort(([a], [b]) => {
      const [noA, noB] = [a === undefined || a === null, b === undefined || b === null];
      if (noA || noB) return noA - noB;
      if (a === b) return 0;
      return sign * (a < b ? -1 : 1);
    });
    return keyed.map(([, item]) => item);
  }

  show(items, id) {
    const wanted = new Set(items.map(id));
    for (const [key, row] of this.#rows) {
      if (!wanted.has(key)) {
        row.line.remove();
        this.#rows.delete(key);
      }
    }
    let before = null;
    for (const item of items) {
      const key = id(item);
      let row = this.#rows.get(key);
      if (!row) {
        row = this.#row();
        this.#rows.set(key, row);
      }
      row.item = item;
      this.#columns.forEach((column, at) => {
        const cell = row.cells[at];
        if (column.fill) column.fill(cell, item);
        else setText(cell, column.text(item));
        const tone = column.tone?.(item) ?? '';
        if (column.tone && cell.dataset.tone !== tone) {
          cell.classList.remove('warn', 'good');
          if (tone) cell.classList.add(tone);
          cell.dataset.tone = tone;
        }
      });
      // A row that is in its place isn't touched, so the focus stays on its button.
      const place = before ? before.nextSibling : this.body.firstChild;
      if (place !== row.line) this.body.insertBefore(row.line, place);
      before = row.line;
    }
    this.empty.hidden = items.length > 0;
  }

  #row() {
    const row = { line: element('tr'), item: null };
    row.cells = this.#columns.map((column, at) => {
      const cell = element(at === 0 ? 'th' : 'td', undefined, `${column.number ? 'number' : ''} ${column.wrap ? 'wrap' : ''}`.trim());
      if (at === 0) cell.scope = 'row';
      if (column.press) {
        const button = element('button', column.label, 'danger');
        button.type = 'button';
        button.addEventListener('click', () => column.press(row.item));
        cell.append(button);
      }
      row.line.append(cell);
      return cell;
    });
    return row;
  }
}

function meter(cell, part) {
  if (!cell.firstChild) {
    const bar = element('span', undefined, 'meter');
    bar.setAttribute('aria-hidden', 'true');
    bar.append(element('i'));
    cell.append(bar, element('span'));
  }
  const [bar, text] = cell.children;
  bar.style.setProperty('--part', Math.min(1, part));
  bar.classList.toggle('full', part >= 0.9);
  setText(text, `${Math.round(part * 100)} %`);
}

const known = { nodes: [], streams: [], viewers: [] };
/** Bytes of each viewer at the answer before, by which its rate is told. */
let before = { time: 0, bytes: new Map() };
let page = 0;
let refused = 0;

const nodes = new Table($('nodes'), {
  caption: 'Nodes',
  empty: 'This node knows of no others.',
  sort: { key: 'here', down: false },
  changed: () => draw(),
  columns: [
    { key: 'id', title: 'Node', value: (node) => node.id, text: (node) => node.id, wrap: true },
    { key: 'role', title: 'Role', value: (node) => node.role, text: (node) => node.role },
    { key: 'here', title: 'Place', value: (node) => (node.here ? 0 : 1), text: (node) => (node.here ? 'this node' : 'elsewhere') },
    {
      key: 'state', title: 'State', value: (node) => (node.draining ? 1 : 0),
      text: (node) => (node.draining ? 'draining' : 'serving'), tone: (node) => (node.draining ? 'warn' : 'good'),
    },
    { key: 'load', title: 'Load', value: (node) => node.load, fill: (cell, node) => meter(cell, node.load) },
    { key: 'streams', title: 'Watched streams', number: true, value: (node) => node.streams?.length ?? 0, text: (node) => (node.role === 'edge' ? String(node.streams?.length ?? 0) : DASH) },
    { key: 'url', title: 'Viewers reach it at', value: (node) => node.public_url, text: (node) => node.public_url ?? DASH, wrap: true },
    { key: 'version', title: 'Version', value: (node) => node.version, text: (node) => node.version, wrap: true },
  ],
});

const renditions = (stream) => (stream.tracks ?? [])
  .filter((track) => track.width)
  .map((track) => `${track.rendition} ${track.width}×${track.height}${number(track.bits_per_second) ? ` ${rate(track.bits_per_second)}` : ''}`)
  .join(', ');
/** Only the origin's record says who publishes. */
const atOrigin = (stream) => 'epoch' in stream;
const complaint = (stream) => [stream.problem, stream.audio_problem, ...(stream.tracks ?? []).flatMap((track) => track.advice ?? [])].find(Boolean);

const streams = new Table($('streams'), {
  caption: 'Streams on this node',
  empty: 'No stream is here at the moment.',
  sort: { key: 'name', down: false },
  changed: () => draw(),
  columns: [
    { key: 'name', title: 'Stream', value: (stream) => stream.name, text: (stream) => stream.name, wrap: true },
    {
      key: 'state', title: 'State', value: (stream) => (stream.publishing ? 0 : 1),
      text: (stream) => (stream.publishing ? 'live' : 'waiting'), tone: (stream) => (stream.publishing ? 'good' : 'warn'),
    },
    { key: 'viewers', title: 'Viewers', number: true, value: (stream) => stream.viewers, text: (stream) => (stream.viewers === undefined ? DASH : stream.viewers.toLocaleString('en')) },
    { key: 'subscribers', title: 'Fed nodes', number: true, value: (stream) => stream.subscribers, text: (stream) => (stream.subscribers === undefined ? DASH : String(stream.subscribers)) },
    { key: 'renditions', title: 'Renditions', value: renditions, text: (stream) => renditions(stream) || DASH, wrap: true },
    { key: 'publisher', title: 'Publisher', value: (stream) => stream.peer, text: (stream) => [stream.peer, stream.encoder].filter(Boolean).join(' · ') || DASH, wrap: true },
    { key: 'since', title: 'Publishing for', number: true, value: (stream) => stream.publishing_seconds, text: (stream) => span(stream.publishing_seconds) },
    { key: 'problem', title: 'To do', value: complaint, text: (stream) => complaint(stream) ?? DASH, wrap: true, tone: (stream) => (complaint(stream) ? 'warn' : '') },
    {
      key: 'kick', title: 'Actions', label: 'Kick publisher', press: (stream) => kickPublisher(stream),
      fill: (cell, stream) => { cell.firstChild.hidden = !(atOrigin(stream) && stream.publishing); cell.firstChild.setAttribute('aria-label', `Kick the publisher of ${stream.name}`); },
    },
  ],
});

const loss = (viewer) => number(viewer.loss_permille) / 10;
const lossy = (viewer) => loss(viewer) >= 2;
const viewers = new Table($('viewers'), {
  caption: 'Viewers of this node',
  empty: 'Nobody watches here at the moment.',
  sort: { key: 'id', down: true },
  changed: () => { page = 0; draw(); },
  columns: [
    { key: 'id', title: 'Viewer', number: true, value: (viewer) => viewer.id, text: (viewer) => String(viewer.id) },
    { key: 'stream', title: 'Stream', value: (viewer) => viewer.stream, text: (viewer) => viewer.stream, wrap: true },
    { key: 'rendition', title: 'Rendition', value: (viewer) => viewer.rendition, text: (viewer) => viewer.rendition ?? (viewer.state === 'connected' ? 'sound alone' : DASH) },
    { key: 'sent', title: 'Sent', number: true, value: (viewer) => viewer.sent, text: (viewer) => rate(viewer.sent) },
    { key: 'estimate', title: 'Estimate', number: true, hint: 'What its link carries, as estimated', value: (viewer) => viewer.estimate_bits_per_second || undefined, text: (viewer) => rate(viewer.estimate_bits_per_second || undefined) },
    { key: 'loss', title: 'Loss', number: true, hint: 'By its last report, before packets are sent again', value: loss, text: (viewer) => `${loss(viewer).toFixed(1)} %`, tone: (viewer) => (lossy(viewer) ? 'warn' : '') },
    { key: 'rtt', title: 'RTT', number: true, hint: 'Round-trip time', value: (viewer) => number(viewer.rtt_ms), text: (viewer) => (number(viewer.rtt_ms) === undefined ? DASH : `${viewer.rtt_ms} ms`) },
    { key: 'resent', title: 'Sent again', number: true, hint: 'Packets', value: (viewer) => viewer.resent, text: (viewer) => viewer.resent.toLocaleString('en') },
    { key: 'switches', title: 'Switches', number: true, hint: 'To another rendition', value: (viewer) => viewer.switches, text: (viewer) => viewer.switches.toLocaleString('en') },
    { key: 'state', title: 'State', value: (viewer) => viewer.state, text: (viewer) => (viewer.transport ? `${viewer.state}, ${viewer.transport}` : viewer.state), tone: (viewer) => (viewer.state === 'connected' ? '' : 'warn') },
    { key: 'since', title: 'Since', number: true, value: (viewer) => viewer.age_seconds, text: (viewer) => span(viewer.age_seconds) },
    { key: 'peer', title: 'Address', value: (viewer) => viewer.peer, text: (viewer) => viewer.peer ?? DASH },
    {
      key: 'kick', title: 'Actions', label: 'Kick', press: (viewer) => kickViewer(viewer),
      fill: (cell, viewer) => cell.firstChild.setAttribute('aria-label', `Kick viewer ${viewer.id}`),
    },
  ],
});

function matching() {
  const words = $('filter').value.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return known.viewers;
  return known.viewers.filter((viewer) => {
    const text = `${viewer.id} ${viewer.stream} ${viewer.rendition ?? ''} ${viewer.state} ${viewer.transport ?? ''} ${viewer.peer ?? ''}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
}

const counted = (count, noun) => {
  if (!count) return '';
  return count > ROWS_MAX ? `${plural(count, noun)}, the first ${ROWS_MAX} in this order are shown` : plural(count, noun);
};

function draw() {
  nodes.show(nodes.sorted(known.nodes).slice(0, ROWS_MAX), (node) => node.id);
  setText($('nodes-count'), counted(known.nodes.length, 'node'));
  streams.show(streams.sorted(known.streams).slice(0, ROWS_MAX), (stream) => stream.name);
  setText($('streams-count'), counted(known.streams.length, 'stream'));

  const found = matching();
  const pages = Math.max(1, Math.ceil(found.length / ROWS));
  page = Math.min(page, pages - 1);
  viewers.show(viewers.sorted(found).slice(page * ROWS, (page + 1) * ROWS), (viewer) => viewer.id);
  viewers.empty.textContent = known.viewers.length ? 'No viewer matches the filter.' : 'Nobody watches here at the moment.';
  const all = known.viewers.length;
  setText($('viewers-count'), found.length === all ? plural(all, 'viewer') : `${found.length.toLocaleString('en')} of ${plural(all, 'viewer')}`);
  setText($('page'), `${page + 1} / ${pages}`);
  $('previous').disabled = page === 0;
  $('next').disabled = page >= pages - 1;

  const own = known.nodes.filter((node) => node.here);
  const edge = own.find((node) => node.role === 'edge');
  setText($('node'), own.map((node) => node.id).join(', '));
  for (const part of document.querySelectorAll('.of-edge')) part.hidden = own.length > 0 && !edge;
  setText($('tile-viewers'), all.toLocaleString('en'));
  setText($('tile-streams'), known.streams.length.toLocaleString('en'));
  const rates = known.viewers.map((viewer) => viewer.sent).filter((sent) => sent !== undefined);
  setText($('tile-sent'), rates.length ? rate(rates.reduce((sum, sent) => sum + sent, 0)) : DASH);
  setText($('tile-lossy'), known.viewers.filter(lossy).length.toLocaleString('en'));
  setText($('tile-load'), own.length ? `${Math.round(100 * Math.max(...own.map((node) => node.load)))} %` : DASH);
  document.title = own.length ? `${own[0].id} · Headwater admin` : 'Headwater · admin';
  $('drain').disabled = !own.length || own.some((node) => node.draining);
  if (own.some((node) => node.draining)) status('draining', 'Draining: it stops when its viewers have gone elsewhere');
}

function status(state, text) {
  $('status').dataset.state = state;
  setText($('status'), text);
}

async function read(what) {
  const response = await fetch(`/api/v1/${what}`, { cache: 'no-store', signal: AbortSignal.timeout(5000) });
  if (!response.ok) throw new Error(`${what}: status ${response.status}`);
  return response.json();
}

/** Rates are told from two answers that are at least a second apart. */
function measure({ time_ms: time, viewers: list }) {
  const seconds = (time - before.time) / 1000;
  const sent = new Map(known.viewers.map((viewer) => [viewer.id, viewer.sent]));
  for (const viewer of list) {
    const bytes = before.bytes.get(viewer.id);
    viewer.sent = seconds >= 1 && bytes !== undefined && viewer.bytes >= bytes
      ? (8 * (viewer.bytes - bytes)) / seconds
      : sent.get(viewer.id);
  }
  if (seconds >= 1 || seconds < 0) before = { time, bytes: new Map(list.map((viewer) => [viewer.id, viewer.bytes])) };
}

async function refresh() {
  let answers;
  try {
    answers = await Promise.all(['nodes', 'streams', 'viewers'].map(read));
  } catch {
    refused += 1;
    // What is shown stays, but nobody should take it for now.
    if (refused > 1) status('silent', 'The node does not answer: this is how it was');
    return;
  }
  refused = 0;
  try {
    const [{ nodes: n }, { streams: s }, v] = answers;
    measure(v);
    Object.assign(known, { nodes: n, streams: s, viewers: v.viewers });
    status('good', 'Up to date');
    draw();
  } catch (error) {
    reportError(error);
    status('silent', 'This page does not understand the node: load it again');
  }
}

let toastTimer;
function toast(text, failed) {
  clearTimeout(toastTimer);
  $('toast').hidden = false;
  $('toast').classList.toggle('failed', failed);
  $('toast').textContent = text;
  toastTimer = setTimeout(() => { $('toast').hidden = true; }, 6000);
}

function confirmed(title, text, yes) {
  const dialog = $('confirm');
  $('confirm-title').textContent = title;
  $('confirm-text').textContent = text;
  $('confirm-yes').textContent = yes;
  dialog.returnValue = 'no';
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true });
  });
}

/** For commands, where the node wants one; asked for once, and kept as long as the page is open. */
let token;

async function command(path, done) {
  try {
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const response = await fetch(path, { method: 'POST', headers, signal: AbortSignal.timeout(5000) });
    if (response.status === 401) {
      token = window.prompt(token ? 'That is not the node\u2019s token. Which is it (auth.admin_token)?' : 'The node\u2019s token (auth.admin_token)')?.trim();
      if (token) await command(path, done);
      return;
    }
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) throw new Error(answer.detail ?? `status ${response.status}`);
    toast(done, false);
  } catch (error) {
    toast(`That did not work: ${error.message}`, true);
  }
  await refresh();
}

async function kickViewer({ id, stream }) {
  const sure = await confirmed(`Kick viewer ${id}?`, `It watches ${stream}. Its session ends at once; its player may join again.`, 'Kick');
  if (sure) await command(`/api/v1/viewers/${id}/kick`, `Viewer ${id} was kicked.`);
}

async function kickPublisher({ name }) {
  const sure = await confirmed(`Kick the publisher of ${name}?`, 'Viewers keep the last picture. An encoder that tries again by itself comes back.', 'Kick publisher');
  // Names need no escaping (A-Z a-z 0-9 . _ ~ -).
  if (sure) await command(`/api/v1/streams/${name}/kick`, `The publisher of ${name} was kicked.`);
}

$('drain').addEventListener('click', async () => {
  const own = known.nodes.filter((node) => node.here).map((node) => node.id).join(', ');
  const sure = await confirmed(`Drain ${own}?`, 'It takes nobody new, asks its viewers to other edges and stops. Whoever supervises it may start it again.', 'Drain');
  if (sure) await command('/api/v1/drain', 'The node drains.');
});
$('filter').addEventListener('input', () => { page = 0; draw(); });
$('previous').addEventListener('click', () => { page -= 1; draw(); });
$('next').addEventListener('click', () => { page += 1; draw(); });

let wake = () => {};
document.addEventListener('visibilitychange', () => wake());
for (;;) {
  if (!document.hidden) await refresh();
  await new Promise((resolve) => {
    wake = resolve;
    setTimeout(resolve, PERIOD_MS);
  });
}
