// One scene: bands, stretch, heat map, new versions, and the box that an operator drags.
import { EMPTY, ICONS, addButtons, makeMap, setTiles, showFootprints } from './map.js';

const byId = (id) => document.getElementById(id);
const holder = byId('map') ?? byId('flat');
const scene = holder.dataset.scene;
let version = holder.dataset.version;
let map = null;
let box = null;

const composite = () => byId('look').elements.composite.value;
const bandName = (value) => byId('band-0').querySelector(`option[value="${value}"]`)?.textContent ?? value;

function bands() {
  const chosen = composite();
  if (chosen === 'one') return byId('band-0').value;
  if (chosen === 'three') return [0, 1, 2].map((place) => byId(`band-${place}`).value).join(',');
  return chosen;
}

const query = () => new URLSearchParams({ bands: bands(), stretch: byId('stretch').value, v: version });

function show() {
  const chosen = composite();
  byId('pick').hidden = chosen !== 'one' && chosen !== 'three';
  for (const label of document.querySelectorAll('.of-three')) label.hidden = chosen !== 'three';
  document.querySelector('.band-label').textContent = chosen === 'one' ? 'Band' : 'Red';
  const names = bands().split(',').map(bandName);
  byId('shown').textContent = names.length === 1 ? names[0] : ['red', 'green', 'blue'].map((colour, place) => `${colour} ${names[place]}`).join(', ');
  const heat = byId('heat').checked;
  if (byId('legend')) byId('legend').hidden = !heat;
  if (map && Number(version)) {
    const pictures = [`${location.origin}/scenes/${scene}/tiles/{z}/{x}/{y}.png?${query()}`];
    const bits = [`${location.origin}/scenes/${scene}/bits/{z}/{x}/{y}.png?v=${version}`];
    for (const [id, tiles, visible] of [['picture', pictures, true], ['bits', bits, heat]]) {
      if (setTiles(map, id, tiles)) {
        map.addSource(id, { type: 'raster', tiles, tileSize: 256, bounds: extent(), maxzoom: 19 });
        map.addLayer({ id, type: 'raster', source: id, paint: { 'raster-fade-duration': 200, 'raster-opacity': id === 'bits' ? 0.78 : 1, 'raster-resampling': id === 'bits' ? 'nearest' : 'linear' } }, 'footprint-fill');
      }
      map.setLayoutProperty(id, 'visibility', visible ? 'visible' : 'none');
    }
  }
  if (byId('flat')) {
    byId('flat-picture').src = `/scenes/${scene}/preview.png?${query()}`;
    byId('flat-heat').hidden = !heat;
    if (heat) byId('flat-heat').src = `/scenes/${scene}/bits.png?v=${version}`;
  }
  holder.dataset.shown = `${bands()} ${version}`;
}

function points(coordinates) {
  return typeof coordinates[0] === 'number' ? [coordinates] : coordinates.flatMap(points);
}

function extent() {
  const all = points(JSON.parse(holder.dataset.outline).coordinates);
  const xs = all.map(([x]) => x), ys = all.map(([, y]) => y);
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

byId('look').addEventListener('change', show);
byId('look').addEventListener('submit', (event) => event.preventDefault());
const start = composite().split(',');
for (const place of [0, 1, 2]) byId(`band-${place}`).value = start[place] ?? start[0];

// A finer version has come: the facts are fetched by htmx, and say which it is.
document.body.addEventListener('htmx:afterSwap', () => {
  const now = byId('state')?.dataset.version;
  if (map && holder.dataset.outline) outline();
  if (byId('state')?.dataset.state === 'decoded' && byId('drag')) byId('drag').hidden = true;
  if (!now || now === version) return;
  if (!Number(version) || !byId('map')) { location.reload(); return; }
  version = now;
  show();
});

if (byId('map')) {
  map = await makeMap(holder);
  if (holder.dataset.outline) {
    outline();
    map.setPaintProperty('footprint-fill', 'fill-opacity', 0);
    const fit = () => {
      const [west, south, east, north] = extent();
      map.fitBounds([[west, south], [east, north]], { padding: Math.min(40, holder.clientWidth / 14), animate: false });
    };
    addButtons(map, [[ICONS.all, 'All of the scene', fit]]);
    fit();
  }
  prepareBox();
}
show();
holder.dataset.ready = 'yes';

function outline() {
  const properties = { id: scene, state: byId('state').dataset.state, box: extent() };
  showFootprints(map, { ...EMPTY, features: [{ type: 'Feature', properties, geometry: JSON.parse(holder.dataset.outline) }] });
}

function prepareBox() {
  const button = byId('drag');
  if (!button) return;
  map.addSource('box', { type: 'geojson', data: EMPTY });
  map.addLayer({ id: 'box-fill', type: 'fill', source: 'box', paint: { 'fill-color': '#f0a030', 'fill-opacity': 0.18 } });
  map.addLayer({ id: 'box-line', type: 'line', source: 'box', paint: { 'line-color': '#f0a030', 'line-width': 2 } });
  let from = null;
  const active = () => button.getAttribute('aria-pressed') === 'true';
  const set = (on) => {
    button.setAttribute('aria-pressed', String(on));
    button.textContent = on ? 'Drag a box on the map' : 'Refine a region';
    map.getCanvas().style.cursor = on ? 'crosshair' : '';
    map.dragPan[on ? 'disable' : 'enable']();
  };
  button.addEventListener('click', () => set(!active()));
  const draw = (to) => {
    const west = Math.min(from.lng, to.lng), east = Math.max(from.lng, to.lng);
    const south = Math.min(from.lat, to.lat), north = Math.max(from.lat, to.lat);
    box = [west, south, east, north];
    const ring = [[west, south], [east, south], [east, north], [west, north], [west, south]];
    map.getSource('box').setData({ type: 'Feature', properties: {}, geometry: { type: 'Polygon', coordinates: [ring] } });
  };
  for (const kind of ['mousedown', 'touchstart']) map.on(kind, (event) => { if (active()) { event.preventDefault(); from = event.lngLat; } });
  for (const kind of ['mousemove', 'touchmove']) map.on(kind, (event) => { if (from) draw(event.lngLat); });
  for (const kind of ['mouseup', 'touchend']) {
    map.on(kind, (event) => {
      if (!from) return;
      draw(event.lngLat);
      from = null;
      set(false);
      byId('box').value = box.map((degrees) => degrees.toFixed(6)).join(',');
      byId('pixels').value = '';
      byId('pixels').placeholder = 'the box on the map';
      byId('region').querySelector('button').focus();
    });
  }
  byId('pixels').addEventListener('input', () => { byId('box').value = ''; });
}
