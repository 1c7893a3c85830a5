// The live map: all scenes, kept up to date.
import { ICONS, addButtons, boundsOf, makeMap, openOnClick, showFootprints, showScenes } from './map.js';

const container = document.getElementById('map');
const map = await makeMap(container);
let features = [];

function fit(most) {
  if (features.length) map.fitBounds(boundsOf(features.slice(0, most)), { padding: Math.min(70, container.clientWidth / 9), maxZoom: 11, animate: false });
}

async function refresh() {
  const answer = await fetch(container.dataset.footprints);
  if (!answer.ok) return;
  const collection = await answer.json();
  const first = !features.length && collection.features.length;
  features = collection.features;
  showFootprints(map, collection);
  if (first) fit(1); // where something came last
  showScenes(map, features);
  document.getElementById('map-note').hidden = features.length > 0;
  container.dataset.ready = String(features.length);
}

map.on('moveend', () => showScenes(map, features));
document.body.addEventListener('page:scenes', refresh);
openOnClick(map);
addButtons(map, [[ICONS.all, 'All scenes', () => fit(features.length)], [ICONS.one, 'The latest scene', () => fit(1)]]);
await refresh();
