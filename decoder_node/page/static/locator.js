// Where on Earth the map is: a small world with all scenes and what is in view, and a word for the pointer's place.
import { latitude, longitude } from './graticule.js';

const WIDTH = 176, HEIGHT = 88;

function rings(thing) {
  const shapes = thing.type === 'FeatureCollection' ? thing.features.map((one) => one.geometry) : [thing.geometry ?? thing];
  return shapes.flatMap((one) => (one.type === 'Polygon' ? one.coordinates : one.coordinates.flat()));
}

const across = (lon) => ((lon + 180) / 360) * WIDTH;
const down = (lat) => ((90 - lat) / 180) * HEIGHT;

// `land`: GeoJSON. Returns a function to be told the footprints whenever they change.
export function showLocator(map, land, colour, colourOf) {
  const corner = document.createElement('div');
  corner.className = 'corner';
  const canvas = document.createElement('canvas');
  canvas.className = 'locator';
  canvas.setAttribute('role', 'img');
  canvas.setAttribute('aria-label', 'Where on Earth the map is');
  const dense = Math.min(3, window.devicePixelRatio || 1);
  [canvas.width, canvas.height] = [WIDTH * dense, HEIGHT * dense];
  const place = document.createElement('output');
  place.className = 'place mono';
  corner.append(canvas, place);
  map.getContainer().append(corner);

  const outline = new Path2D();
  for (const ring of rings(land)) {
    let last = [Infinity, Infinity];
    ring.forEach(([lon, lat], index) => {
      const at = [across(lon), down(lat)];
      if (index && Math.hypot(at[0] - last[0], at[1] - last[1]) < 0.35) return;
      outline[index ? 'lineTo' : 'moveTo'](...at);
      last = at;
    });
    outline.closePath();
  }
  let features = [];
  const draw = () => {
    const pen = canvas.getContext('2d');
    pen.setTransform(dense, 0, 0, dense, 0, 0);
    pen.fillStyle = colour('sea');
    pen.fillRect(0, 0, WIDTH, HEIGHT);
    pen.fillStyle = colour('border');
    for (const turn of [0, -WIDTH]) { // what lies beyond 180 degrees comes in at the left
      pen.save();
      pen.translate(turn, 0);
      pen.fill(outline, 'evenodd');
      pen.restore();
    }
    for (const { properties } of features) {
      const [west, south, east, north] = properties.box;
      pen.fillStyle = colourOf(properties.state);
      pen.beginPath();
      pen.arc(across((west + (west > east ? east + 360 : east)) / 2) % WIDTH, down((south + north) / 2), 1.8, 0, 7);
      pen.fill();
    }
    const bounds = map.getBounds();
    const turn = 360 * Math.floor((map.getCenter().lng + 180) / 360);
    const [left, right] = [across(bounds.getWest() - turn), across(bounds.getEast() - turn)];
    const [top, bottom] = [down(bounds.getNorth()), down(bounds.getSouth())];
    const size = (length) => Math.max(7, length);
    pen.strokeStyle = colour('ink');
    pen.lineWidth = 1.25;
    pen.strokeRect((left + right - size(right - left)) / 2, (top + bottom - size(bottom - top)) / 2, size(right - left), size(bottom - top));
  };
  canvas.addEventListener('click', (event) => {
    const box = canvas.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    map.jumpTo({ center: [360 * x - 180, Math.max(-80, Math.min(80, 90 - 180 * y))], zoom: Math.min(map.getZoom(), 4) });
  });
  map.on('mousemove', ({ lngLat }) => {
    const fine = 10 ** -Math.max(1, Math.min(5, Math.round(map.getZoom() / 3)));
    place.textContent = `${latitude(lngLat.lat, fine)}  ${longitude(lngLat.lng, fine)}`;
  });
  map.on('mouseout', () => { place.textContent = ''; });
  map.on('move', draw);
  document.addEventListener('theme', draw);
  draw();
  return (found) => { features = found; draw(); };
}
