// Colours, and maps on canvases. Colours run straight through OKLab, so equal steps of a weight look equal.

export const dark = matchMedia("(prefers-color-scheme: dark)");
const ENDS = {
  light: { none: "#ffffff", more: "#123a7c", less: "#b3541e" },
  dark: { none: "#1e2024", more: "#ffd27a", less: "#6fb1ff" },
};
const READ = "#e0218a"; // the row that is read

const linear = (byte) => { const x = byte / 255; return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; };
const byte = (x) => Math.round(255 * Math.min(1, Math.max(0, x <= 0.0031308 ? 12.92 * x : 1.055 * x ** (1 / 2.4) - 0.055)));
const product = (rows, vector) => rows.map((row) => row.reduce((sum, factor, place) => sum + factor * vector[place], 0));

// Ottosson 2020, https://bottosson.github.io/posts/oklab/
const TO_CONES = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566], [0.0883024619, 0.2817188376, 0.6299787005]];
const TO_LAB = [[0.2104542553, 0.793617785, -0.0040720468], [1.9779984951, -2.428592205, 0.4505937099], [0.0259040371, 0.7827717662, -0.808675766]];
const FROM_LAB = [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.291485548]];
const FROM_CONES = [[4.0767416621, -3.3077115913, 0.2309699292], [-1.2684380046, 2.6097574011, -0.3413193965], [-0.0041960863, -0.7034186147, 1.707614701]];
const lab = (hex) => product(TO_LAB, product(TO_CONES, [1, 3, 5].map((place) => linear(parseInt(hex.slice(place, place + 2), 16)))).map(Math.cbrt));
const rgb = (colour) => product(FROM_CONES, product(FROM_LAB, colour).map((x) => x ** 3)).map(byte);

const ramp = (from, to) => {
  const [start, end] = [lab(from), lab(to)];
  return Array.from({ length: 128 }, (_, step) => rgb(start.map((value, part) => value + (end[part] - value) * step / 127)));
};
const ramps = Object.fromEntries(Object.entries(ENDS).map(([name, { none, more, less }]) => [name, { more: ramp(none, more), less: ramp(none, less) }]));

/** The colour of a share from -127 to 127. */
export const colour = (share) => {
  const { more, less } = ramps[dark.matches ? "dark" : "light"];
  return share < 0 ? less[-share] : more[share];
};

/** What the server packed: shares of the largest weight of a row, in signed bytes. */
export const unpack = ({ shape, shares, largest }) => {
  const text = atob(shares);
  return { shape, shares: Int8Array.from(text, (sign) => sign.charCodeAt(0)), largest };
};

/** One head of an unpacked map: the shares of row i, and weights as numbers. */
export const head = ({ shape: [, n, m], shares, largest }, number) => ({
  n, m,
  row: (i) => shares.subarray((number * n + i) * m, (number * n + i + 1) * m),
  weight: (i, j) => shares[(number * n + i) * m + j] / 127 * largest[number * n + i],
});

/** The map; ticks at both ends of the row that is read. */
export const paint = (canvas, map, read = -1) => {
  [canvas.width, canvas.height] = [map.m, map.n];
  const pen = canvas.getContext("2d"), image = pen.createImageData(map.m, map.n);
  for (let i = 0; i < map.n; i += 1) {
    const row = map.row(i);
    for (let j = 0; j < map.m; j += 1) image.data.set([...colour(row[j]), 255], 4 * (i * map.m + j));
  }
  pen.putImageData(image, 0, 0);
  if (read < 0) return;
  const size = Math.max(1, Math.round(map.m / 40));
  pen.fillStyle = READ;
  pen.fillRect(0, read, size, 1);
  pen.fillRect(map.m - size, read, size, 1);
};

const ZOOM = 12;

/** An image in grey, and on each patch how strongly it is looked at. */
export const overlay = (canvas, { side, grid: [rows, columns], pixels }, row, read) => {
  canvas.width = canvas.height = side * ZOOM;
  const pen = canvas.getContext("2d"), size = side * ZOOM / columns;
  const box = (place) => [(place % columns) * size, Math.floor(place / columns) * size, size, size];
  pixels.forEach((grey, place) => {
    pen.fillStyle = `rgb(${grey} ${grey} ${grey})`;
    pen.fillRect((place % side) * ZOOM, Math.floor(place / side) * ZOOM, ZOOM, ZOOM);
  });
  for (let place = 0; place < rows * columns; place += 1) {
    const share = row[place] / 127;
    pen.fillStyle = `rgb(${share < 0 ? "240 110 40" : "40 160 255"} / ${0.8 * Math.abs(share)})`;
    pen.fillRect(...box(place));
  }
  pen.lineWidth = 4;
  pen.strokeStyle = READ;
  pen.strokeRect(...box(read));
};
