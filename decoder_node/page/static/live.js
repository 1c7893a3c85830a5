// The live map: all scenes, kept up to date.
import { boundsOf, makeMap, openOnClick, showFootprints, showScenes } from './map.js';

const container = document.getElementById('map');
const map = await makeMap(container);
let features = [];

async function refresh() {
  const answer = await fetch(container.dataset.footprints);
  if (!answer.ok) return;
  const collection = await answer.json();
  const first = !features.length && collection.features.length;
  features = collection.features;
  showFootprints(map, collection);
  if (first) {
    // where something came last; all the world is for those who zoom out
    map.fitBounds(boundsOf(features.slice(0, 1)), { padding: 60, maxZoom: 11, animate: false });
  }
  showScenes(map, features);
  document.getElementById('map-note').hidden = features.length > 0;
  container.dataset.ready = String(features.length);
}

map.on('moveend', () => showScenes(map, features));
document.body.addEventListener('page:scenes', refresh);
openOnClick(map);
await refresh();
