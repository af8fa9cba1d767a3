// Seconds against length, both logarithmic: two curves that differ in colour, dash and mark.

import { seconds } from "./basics.js";

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [560, 300, 78, 20, 18, 52];

const svg = (tag, attributes, ...children) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};

const mark = (kind, x, y) => (kind === "own"
  ? svg("circle", { class: "mark", cx: x, cy: y, r: 5 })
  : svg("rect", { class: "mark", x: x - 4.5, y: y - 4.5, width: 9, height: 9 }));

const scales = (points) => {
  const lengths = points.map(([length]) => Math.log10(length)), times = points.map(([, time]) => Math.log10(time));
  const [first, last] = [Math.min(...lengths), Math.max(...lengths)];
  const low = Math.floor(Math.min(...times)), high = Math.max(Math.ceil(Math.max(...times)), low + 1);
  return {
    x: (length) => LEFT + (Math.log10(length) - first) / (last - first || 1) * (WIDTH - LEFT - RIGHT),
    y: (time) => HEIGHT - BOTTOM - (Math.log10(time) - low) / (high - low) * (HEIGHT - TOP - BOTTOM),
    ticks: Array.from({ length: high - low + 1 }, (_, step) => 10 ** (low + step)),
  };
};

export const chart = (place, { own, dense, unit }, name) => {
  place.replaceChildren();
  if (!own.length) return;
  const { x, y, ticks } = scales([...own, ...dense]), parts = [];
  for (const time of ticks) {
    parts.push(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(time), y2: y(time) }));
    parts.push(svg("text", { x: LEFT - 8, y: y(time) + 5, "text-anchor": "end" }, seconds(time)));
  }
  for (const [length] of own) parts.push(svg("text", { x: x(length), y: HEIGHT - BOTTOM + 22, "text-anchor": "middle" }, length.toLocaleString("en")));
  parts.push(svg("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, unit));
  [["own", own, name], ["dense", dense, "dense attention (SDPA)"]].forEach(([kind, curve, words], row) => {
    const line = svg("polyline", { points: curve.map(([length, time]) => `${x(length)},${y(time)}`).join(" ") });
    const marks = curve.map(([length, time]) => {
      const one = mark(kind, x(length), y(time));
      one.append(svg("title", {}, `${words}, ${length.toLocaleString("en")} ${unit}: ${seconds(time)}`));
      return one;
    });
    const legend = [mark(kind, LEFT + 16, TOP + 6 + 20 * row), svg("text", { class: "who", x: LEFT + 28, y: TOP + 11 + 20 * row }, words)];
    parts.push(svg("g", { class: kind }, line, ...marks, ...legend));
  });
  const about = `Seconds of ${name} and of dense attention against ${unit}; the numbers stand below`;
  place.append(svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": about }, ...parts));
};
