// The map of what was found, and the search for what it shows.
import { boundsOf, makeMap, openOnClick, showFootprints, showScenes } from './map.js';

const container = document.getElementById('map');
const form = document.getElementById('search');
const map = await makeMap(container);
let features = [];
let moving = false;

async function refresh() {
  const query = new URLSearchParams(new FormData(form));
  const answer = await fetch(`${container.dataset.footprints}?${query}`);
  if (!answer.ok) return;
  const collection = await answer.json();
  features = collection.features;
  showFootprints(map, collection);
  if (features.length && !moving) map.fitBounds(boundsOf(features), { padding: 30, maxZoom: 9, animate: false });
  moving = false;
  showScenes(map, features);
  const kept = new URLSearchParams([...query].filter(([, value]) => value));
  history.replaceState(null, '', `/scenes${kept.size ? `?${kept}` : ''}`);
}

document.getElementById('in-view').addEventListener('click', () => {
  const bounds = map.getBounds();
  const box = [bounds.getWest(), bounds.getSouth(), bounds.getEast(), bounds.getNorth()];
  moving = true;
  form.elements.place.value = box.map((degrees) => degrees.toFixed(3)).join(', ');
  form.elements.place.dispatchEvent(new Event('change', { bubbles: true }));
});
map.on('moveend', () => showScenes(map, features));
document.body.addEventListener('htmx:afterSwap', (event) => { if (event.detail.target.id === 'found') refresh(); });
openOnClick(map);
document.getElementById('more').addEventListener('click', (event) => {
  const open = form.classList.toggle('open');
  event.target.setAttribute('aria-expanded', String(open));
});
await refresh();
container.dataset.ready = 'yes';
