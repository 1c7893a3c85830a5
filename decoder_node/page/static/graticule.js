// Lines of longitude and latitude, as close as the zoom allows, with their degrees along the map's edges.

const STEPS = [30, 15, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001];
const APART_PX = 110;
const LABEL_PX = 66;

function stepFor(zoom) {
  const degree = (512 * 2 ** zoom) / 360; // pixels
  return STEPS.findLast((step) => step * degree >= APART_PX) ?? STEPS[0];
}

function between(low, high, step) {
  const values = [];
  for (let place = Math.ceil(low / step); place * step <= high && values.length < 200; place += 1) values.push(place * step);
  return values;
}

export function degrees(value, step, positive, negative) {
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const size = Math.abs(value).toFixed(digits);
  return Number(size) === 0 ? '0°' : `${size}° ${value > 0 ? positive : negative}`;
}

export const longitude = (value, step) => degrees(((value + 540) % 360) - 180, step, 'E', 'W');
export const latitude = (value, step) => degrees(value, step, 'N', 'S');

function lines(map) {
  const step = stepFor(map.getZoom());
  const bounds = map.getBounds();
  const wide = bounds.getEast() - bounds.getWest(), high = bounds.getNorth() - bounds.getSouth();
  const west = bounds.getWest() - wide, east = bounds.getEast() + wide;
  const south = Math.max(-85, bounds.getSouth() - high), north = Math.min(85, bounds.getNorth() + high);
  const found = between(west, east, step).map((lon) => [[lon, south], [lon, north]]);
  found.push(...between(south, north, step).map((lat) => [[west, lat], [east, lat]]));
  return { type: 'Feature', properties: {}, geometry: { type: 'MultiLineString', coordinates: found } };
}

// Keeps the source `graticule` and the labels up to date.
export function showGraticule(map) {
  const frame = document.createElement('div');
  frame.className = 'degrees mono';
  frame.setAttribute('aria-hidden', 'true');
  map.getContainer().append(frame);
  const label = () => {
    const step = stepFor(map.getZoom());
    const bounds = map.getBounds();
    const { clientWidth: width, clientHeight: height } = map.getContainer();
    const labels = [];
    const put = (text, x, y, kind) => {
      const span = document.createElement('span');
      span.className = kind;
      span.textContent = text;
      span.style.transform = `translate(${x.toFixed(0)}px, ${y.toFixed(0)}px)`;
      labels.push(span);
    };
    let last = -Infinity;
    for (const lon of between(bounds.getWest(), bounds.getEast(), step)) {
      const { x } = map.project([lon, map.getCenter().lat]);
      if (x < 70 || x > width - 70 || x - last < LABEL_PX) continue;
      put(longitude(lon, step), x, 0, 'lon');
      last = x;
    }
    for (const lat of between(Math.max(-84, bounds.getSouth()), Math.min(84, bounds.getNorth()), step)) {
      const { y } = map.project([map.getCenter().lng, lat]);
      if (y > 34 && y < height - 110) put(latitude(lat, step), 0, y, 'lat');
    }
    frame.replaceChildren(...labels);
  };
  const draw = () => { map.getSource('graticule').setData(lines(map)); label(); };
  map.on('move', label);
  map.on('moveend', draw);
  draw();
}
