// Small things that all parts of the page use.

export const $ = (selector, within = document) => within.querySelector(selector);

export const make = (tag, { text, ...rest } = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), rest);
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
};

/** regard said no, in words for the reader. */
export class Refusal extends Error {}

export const ask = async (name, question, signal) => {
  let told;
  try {
    const request = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question), signal };
    told = await (await fetch(`/api/${name}`, request)).json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("regard explore does not answer: was it stopped in the terminal? Start it again and reload this page.");
  }
  if (told.error) throw new Refusal(told.error);
  return told;
};

/** Questions of one kind: the newest counts, older ones are dropped with their answers. */
export class Newest {
  stop() { this.current?.abort(); }

  async run(work) {
    this.stop();
    const mine = this.current = new AbortController();
    try { await work(mine.signal); } catch (error) { if (error.name !== "AbortError") throw error; }
  }
}

export const refused = (error) => {
  if (!(error instanceof Refusal)) throw error;
  return error;
};

export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?:]$/.test(text) ? "" : ".");

export const later = (wait, run) => {
  let timer;
  return () => { clearTimeout(timer); timer = setTimeout(run, wait); };
};

/** Fill a select with names; with one name there is nothing to choose. */
export const fill = (select, names, chosen) => {
  select.replaceChildren(...names.map((name, number) => make("option", { value: number, text: name })));
  select.value = chosen < names.length ? chosen : names.length - 1;
  select.closest(".field").hidden = names.length < 2;
};

export const table = (heads, rows) => make("table", {},
  make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", { text })))),
  make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((text) => make("td", { text }))))));

/** Which of n x m cells of a canvas the pointer is in. */
export const cell = (event, { n, m }, canvas = event.currentTarget) => {
  const box = canvas.getBoundingClientRect();
  const at = (place, start, size, count) => Math.max(0, Math.min(count - 1, Math.floor((place - start) / size * count)));
  return [at(event.clientY, box.top, box.height, n), at(event.clientX, box.left, box.width, m)];
};

/** Mouse and finger; not when the page moved under a pointer that rests. */
export const onPointer = (element, run) => {
  for (const kind of ["pointermove", "pointerdown"]) element.addEventListener(kind, (event) => {
    if (kind === "pointerdown" || event.movementX || event.movementY) run(event);
  });
};

export const seconds = (value) => {
  const [factor, unit] = value >= 1 ? [1, "s"] : value >= 1e-3 ? [1e3, "ms"] : [1e6, "µs"];
  return `${Number((factor * value).toPrecision(3))} ${unit}`;
};
