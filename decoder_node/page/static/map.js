// The map: a plain world from vendored Natural Earth outlines, footprints, and scenes as tiles.
import { showGraticule } from './graticule.js';
import { showLocator } from './locator.js';

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const STATES = { receiving: 'come', partial: 'part', durable: 'wait', decoded: 'good', quarantined: 'bad' };
export const EMPTY = { type: 'FeatureCollection', features: [] };

async function world() {
  const answer = await fetch('/static/vendor/countries-50m.json?v=1');
  const topology = await answer.json();
  return {
    land: unwrap(window.topojson.feature(topology, topology.objects.land)),
    borders: unwrap(window.topojson.mesh(topology, topology.objects.countries, (a, b) => a !== b)),
  };
}

// A ring that crosses the antimeridian goes on beyond 180 degrees instead of back around the world.
function unwrapped(coordinates) {
  if (typeof coordinates[0][0] !== 'number') return coordinates.map(unwrapped);
  let turn = 0;
  return coordinates.map(([lon, lat], place) => {
    if (place) {
      const step = lon - coordinates[place - 1][0];
      if (step > 180) turn -= 360;
      if (step < -180) turn += 360;
    }
    return [lon + turn, lat];
  });
}

function unwrap(thing) {
  if (thing.type === 'FeatureCollection') return { ...thing, features: thing.features.map(unwrap) };
  if (thing.type === 'Feature') return { ...thing, geometry: unwrap(thing.geometry) };
  return { ...thing, coordinates: unwrapped(thing.coordinates) };
}

export function stateColour() {
  return ['match', ['get', 'state'], ...Object.entries(STATES).flatMap(([state, name]) => [state, colour(name)]), colour('dim')];
}

const paints = () => ({
  sea: { 'background-color': colour('sea') },
  land: { 'fill-color': colour('land') },
  graticule: { 'line-color': colour('border'), 'line-opacity': 0.55, 'line-width': 0.7 },
  borders: { 'line-color': colour('border'), 'line-width': 0.8 },
  'footprint-fill': { 'fill-color': stateColour(), 'fill-opacity': ['interpolate', ['linear'], ['zoom'], 5, 0.28, 9, 0.04] },
  'footprint-line': { 'line-color': stateColour(), 'line-width': ['interpolate', ['linear'], ['zoom'], 2, 1.4, 10, 2] },
  'footprint-dot': { 'circle-color': stateColour(), 'circle-radius': 4.5, 'circle-stroke-width': 1.5, 'circle-stroke-color': colour('panel'), 'circle-opacity': ['interpolate', ['linear'], ['zoom'], 6, 1, 7.5, 0], 'circle-stroke-opacity': ['interpolate', ['linear'], ['zoom'], 6, 1, 7.5, 0] },
});

export async function makeMap(container, options = {}) {
  const maplibregl = window.maplibregl;
  maplibregl.setWorkerUrl('/static/vendor/maplibre-gl-csp-worker.js');
  const map = new maplibregl.Map({
    container, center: [10, 30], zoom: 1, maxZoom: 19, attributionControl: false, dragRotate: false, pitchWithRotate: false,
    renderWorldCopies: true, fadeDuration: 150, canvasContextAttributes: { preserveDrawingBuffer: true },
    style: { version: 8, sources: {}, layers: [{ id: 'sea', type: 'background', paint: paints().sea }] },
    ...options,
  });
  map.touchZoomRotate.disableRotation();
  map.addControl(new maplibregl.NavigationControl({ showCompass: false }), 'top-right');
  map.addControl(new maplibregl.ScaleControl({ maxWidth: 120 }), 'bottom-right');
  map.addControl(new maplibregl.AttributionControl({ compact: true, customAttribution: 'Natural Earth' }), 'bottom-right');
  container.querySelector('.maplibregl-ctrl-attrib')?.removeAttribute('open');
  container.querySelector('.maplibregl-compact-show')?.classList.remove('maplibregl-compact-show');
  map.on('dataloading', () => { container.dataset.idle = 'no'; });
  map.on('idle', () => { if (map.getSource('land')) container.dataset.idle = 'yes'; }); // all that is asked for is drawn
  await new Promise((done) => map.once('load', done));
  const paint = paints();
  const { land, borders } = await world();
  map.addSource('land', { type: 'geojson', data: land, tolerance: 0.4 });
  map.addSource('borders', { type: 'geojson', data: borders, tolerance: 0.4 });
  map.addSource('graticule', { type: 'geojson', data: EMPTY });
  map.addSource('footprints', { type: 'geojson', data: EMPTY, promoteId: 'id' });
  map.addSource('centres', { type: 'geojson', data: EMPTY });
  map.addLayer({ id: 'land', type: 'fill', source: 'land', paint: paint.land });
  map.addLayer({ id: 'graticule', type: 'line', source: 'graticule', paint: paint.graticule });
  map.addLayer({ id: 'borders', type: 'line', source: 'borders', paint: paint.borders });
  map.addLayer({ id: 'footprint-fill', type: 'fill', source: 'footprints', paint: paint['footprint-fill'] });
  map.addLayer({ id: 'footprint-line', type: 'line', source: 'footprints', paint: paint['footprint-line'] });
  map.addLayer({ id: 'footprint-dot', type: 'circle', source: 'centres', maxzoom: 8, paint: paint['footprint-dot'] });
  document.addEventListener('theme', () => {
    for (const [layer, values] of Object.entries(paints())) {
      for (const [name, value] of Object.entries(values)) map.setPaintProperty(layer, name, value);
    }
  });
  showGraticule(map);
  located.set(map, showLocator(map, land, colour, (state) => colour(STATES[state] ?? 'dim')));
  return map;
}

// Buttons on the map: [text, what it says, what it does].
export function addButtons(map, buttons) {
  const group = document.createElement('div');
  group.className = 'maplibregl-ctrl maplibregl-ctrl-group';
  for (const [icon, says, act] of buttons) {
    const button = document.createElement('button');
    button.type = 'button';
    button.title = says;
    button.setAttribute('aria-label', says);
    button.innerHTML = `<svg viewBox="0 0 24 24" width="18" height="18" aria-hidden="true"><path d="${icon}" fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round" stroke-linejoin="round"/></svg>`;
    button.addEventListener('click', act);
    group.append(button);
  }
  map.addControl({ onAdd: () => group, onRemove: () => group.remove() }, 'top-right');
}
export const ICONS = {
  all: 'M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5',
  one: 'M12 3v4M12 17v4M3 12h4M17 12h4M12 9.5a2.5 2.5 0 1 0 0 5a2.5 2.5 0 1 0 0-5',
};

const located = new WeakMap();
export function showFootprints(map, collection) {
  located.get(map)?.(collection.features);
  map.getSource('footprints').setData(collection);
  map.getSource('centres').setData({
    type: 'FeatureCollection',
    features: collection.features.map(({ properties }) => ({
      type: 'Feature', properties, geometry: { type: 'Point', coordinates: centre(properties.box) },
    })),
  });
}

function centre([west, south, east, north]) {
  return [west > east ? (west + east + 360) / 2 : (west + east) / 2, (south + north) / 2];
}

// Let a source show other tiles; true if there is no such source yet.
const addresses = new Map();
export function setTiles(map, id, tiles) {
  const source = map.getSource(id);
  if (source && addresses.get(id) !== tiles[0]) source.setTiles(tiles);
  addresses.set(id, tiles[0]);
  return !source;
}

// Scenes as raster tiles: those in view, when they are large enough to be seen. A new version replaces the old one.
export function showScenes(map, features, most = 24) {
  const bounds = map.getBounds();
  const wanted = new Map();
  if (map.getZoom() >= 5) {
    for (const { properties } of features) {
      const [west, south, east, north] = properties.box;
      const inView = west <= bounds.getEast() && east >= bounds.getWest() && south <= bounds.getNorth() && north >= bounds.getSouth();
      const size = Math.abs(map.project([west, north]).x - map.project([east, south]).x);
      if (properties.v && inView && size > 12 && wanted.size < most) wanted.set(`scene-${properties.id}`, properties);
    }
  }
  for (const id of Object.keys(map.getStyle().sources)) {
    if (id.startsWith('scene-') && !wanted.has(id)) {
      map.removeLayer(id);
      map.removeSource(id);
    }
  }
  for (const [id, { id: scene, v, box }] of wanted) {
    const tiles = [`${location.origin}/scenes/${scene}/tiles/{z}/{x}/{y}.png?v=${v}`];
    if (!setTiles(map, id, tiles)) continue;
    map.addSource(id, { type: 'raster', tiles, tileSize: 256, bounds: box, maxzoom: 18 });
    map.addLayer({ id, type: 'raster', source: id, paint: { 'raster-fade-duration': 300 } }, 'footprint-fill');
  }
}

export function boundsOf(features) {
  const bounds = new window.maplibregl.LngLatBounds();
  for (const { properties } of features) {
    const [west, south, east, north] = properties.box;
    bounds.extend([west, south]).extend([west > east ? east + 360 : east, north]);
  }
  return bounds;
}

export function openOnClick(map) {
  for (const layer of ['footprint-fill', 'footprint-dot']) {
    map.on('click', layer, (event) => { location.href = `/scenes/${event.features[0].properties.id}`; });
    map.on('mouseenter', layer, () => { map.getCanvas().style.cursor = 'pointer'; });
    map.on('mouseleave', layer, () => { map.getCanvas().style.cursor = ''; });
  }
  const popup = new window.maplibregl.Popup({ closeButton: false, closeOnClick: false, offset: 12 });
  map.on('mousemove', 'footprint-fill', (event) => {
    const { name, state } = event.features[0].properties;
    popup.setLngLat(event.lngLat).setText(`${name} · ${state}`).addTo(map);
  });
  map.on('mouseleave', 'footprint-fill', () => popup.remove());
}
