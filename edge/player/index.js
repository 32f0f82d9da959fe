// The list of what is live, kept fresh, and how to push.

const POLL_MS = 2000;
const $ = (id) => document.getElementById(id);
// A token in the fragment never reaches a server log; the query is there for links that lose fragments.
const token = new URLSearchParams(location.hash.slice(1)).get('token') ?? new URLSearchParams(location.search).get('token');

/** Text of a track: "1280×720 H.264", "Opus stereo". Fields that a track lacks are left out. */
function trackText(track) {
  if (typeof track === 'string') return track;
  const size = track.width && track.height ? `${track.width}×${track.height}` : '';
  const codec = { h264: 'H.264', opus: 'Opus', aac: 'AAC' }[String(track.codec ?? '').toLowerCase()] ?? track.codec ?? '';
  const speed = size && track.bits_per_second > 0 ? `${(track.bits_per_second / 1e6).toFixed(1)} Mbit/s` : '';
  return [size, codec, speed].filter(Boolean).join(' ');
}

/** The server's words, as a sentence. */
function sentence(text) {
  const capital = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(capital) ? capital : `${capital}.`;
}

function card(stream) {
  const live = stream.publishing !== false;
  const link = document.createElement('a');
  link.className = 'card';
  link.href = `/play/${stream.name}${token ? `#token=${encodeURIComponent(token)}` : ''}`;
  const line = (className, ...children) => {
    const element = document.createElement('div');
    element.className = className;
    element.append(...children.filter(Boolean));
    link.append(element);
  };
  const tag = document.createElement('span');
  tag.className = live ? 'tag on' : 'tag';
  tag.textContent = live ? 'LIVE' : 'WAITING';
  const viewers = document.createElement('span');
  viewers.className = 'viewers';
  if (Number.isFinite(stream.viewers)) viewers.textContent = stream.viewers === 1 ? '1 viewer' : `${stream.viewers} viewers`;
  line('card-top', tag, viewers);
  line('card-name', stream.name);
  const tracks = (stream.tracks ?? []).map(trackText).filter(Boolean).join(' · ');
  if (tracks) line('card-tracks', tracks);
  if (stream.problem) line('card-problem', sentence(stream.problem));
  const item = document.createElement('li');
  item.append(link);
  return item;
}

let shown = '';
async function refresh() {
  try {
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const response = await fetch('/api/v1/streams', { headers, cache: 'no-store', signal: AbortSignal.timeout(5000) });
    if (response.status === 401 || response.status === 403) {
      $('status').textContent = 'This list needs a valid token in the address: …/#token=TOKEN';
      return;
    }
    if (!response.ok) throw new Error(`status ${response.status}`);
    const { streams } = await response.json();
    const text = JSON.stringify(streams);
    if (text !== shown) {
      shown = text;
      // Replacing the list would take the keyboard's focus with it.
      const focused = document.activeElement?.getAttribute?.('href');
      $('streams').replaceChildren(...streams.map(card));
      if (focused) $('streams').querySelector(`[href="${CSS.escape(focused)}"]`)?.focus();
      $('empty').hidden = streams.length > 0;
    }
    $('status').textContent = streams.length === 1 ? '1 stream' : `${streams.length} streams`;
  } catch {
    $('status').textContent = 'This server does not answer; trying again…';
  }
  setTimeout(refresh, document.hidden ? 5 * POLL_MS : POLL_MS);
}

function showPush() {
  const key = $('name').value.trim() || 'NAME';
  const host = location.hostname.includes(':') ? `[${location.hostname.replace(/[[\]]/g, '')}]` : location.hostname;
  const server = `rtmp://${host}/live`;
  $('push-server').textContent = server;
  $('push-key').textContent = key;
  $('push-url').textContent = `${server}/${key}`;
  $('push-ffmpeg').textContent = 'ffmpeg -re -i FILE -c:v libx264 -preset veryfast -tune zerolatency -bf 0 -g 60 '
    + `-pix_fmt yuv420p -c:a aac -f flv ${server}/${key}`;
  $('push-player').textContent = `${location.origin}/play/live/${key}`;
}

async function copy(button) {
  const source = $(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent);
  } catch {
    // Plain http has no clipboard: select the text and use the old way.
    const range = document.createRange();
    range.selectNodeContents(source);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    document.execCommand('copy');
  }
  button.textContent = 'Copied';
  setTimeout(() => { button.textContent = 'Copy'; }, 1500);
}

for (const button of document.querySelectorAll('[data-copy]')) button.addEventListener('click', () => copy(button));
$('name').addEventListener('input', showPush);
showPush();
refresh();
