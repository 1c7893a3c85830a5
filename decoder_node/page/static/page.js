// What every page does: events, theme, times, and the token that changes must carry.

const WORDS = [[60, 'second', 1], [3600, 'minute', 60], [86400, 'hour', 3600], [30 * 86400, 'day', 86400]];
const relative = new Intl.RelativeTimeFormat('en', { numeric: 'auto', style: 'short' });

function ago(moment) {
  const seconds = (moment - Date.now()) / 1000;
  if (Math.abs(seconds) < 5) return 'now';
  for (const [below, unit, length] of WORDS) {
    if (Math.abs(seconds) < below) return relative.format(Math.round(seconds / length), unit);
  }
  return new Date(moment).toISOString().slice(0, 10);
}

function tell() {
  for (const time of document.querySelectorAll('time.ago')) {
    const text = ago(Date.parse(time.dateTime));
    if (time.textContent !== text) time.textContent = text;
  }
  const clock = document.getElementById('clock');
  if (clock) clock.textContent = new Date().toISOString().slice(11, 19) + ' UTC';
}
tell();
setInterval(tell, 1000);
document.body.addEventListener('htmx:afterSwap', tell);

// --- events: the server names a part, whoever shows it fetches it (hx-trigger="page:NAME from:body")

function listen() {
  const beat = document.getElementById('beat');
  const say = (state, word) => {
    beat.className = `beat ${state}`;
    beat.querySelector('.beat-word').textContent = word;
  };
  const source = new EventSource('/events');
  let lost = false;
  source.onopen = () => {
    say('on', 'live');
    if (lost) for (const name of ['flight', 'scenes', 'nodes', 'asks']) window.htmx.trigger(document.body, `page:${name}`);
    lost = false;
  };
  source.onerror = () => { say('off', 'no connection'); lost = true; };
  for (const name of ['flight', 'scenes', 'nodes', 'asks']) {
    source.addEventListener(name, () => window.htmx.trigger(document.body, `page:${name}`));
  }
  addEventListener('pagehide', () => source.close());
}
listen();

// --- changes carry the operator's token

const csrf = document.querySelector('meta[name="csrf"]')?.content;
document.body.addEventListener('htmx:configRequest', (event) => {
  if (csrf && event.detail.verb !== 'get') event.detail.headers['X-CSRF-Token'] = csrf;
});
document.body.addEventListener('htmx:responseError', (event) => {
  const place = document.getElementById('act-problem');
  if (!place || event.detail.requestConfig.verb === 'get') return;
  place.textContent = event.detail.xhr.responseText.trim();
  place.hidden = false;
});
document.body.addEventListener('htmx:beforeRequest', (event) => {
  const place = document.getElementById('act-problem');
  if (place && event.detail.requestConfig.verb !== 'get') place.hidden = true;
});

// --- theme

export function dark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
}

function switchTheme() {
  const next = dark() ? 'light' : 'dark';
  document.documentElement.dataset.theme = next;
  document.cookie = `theme=${next}; path=/; max-age=31536000; samesite=strict`;
  document.dispatchEvent(new Event('theme'));
}
document.getElementById('theme').addEventListener('click', switchTheme);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => document.dispatchEvent(new Event('theme')));

document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest('input, select, textarea')) return;
  if (event.key === 't') switchTheme();
  if (event.key === '/') {
    const field = document.querySelector('input[type="search"]');
    if (field) { event.preventDefault(); field.focus(); } else location.href = '/scenes';
  }
});
