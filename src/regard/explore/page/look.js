// Where a small model looks in the user's input: tokens or patches whose rows are read by hand or by arrow keys.

import { $, Newest, ask, cell, fill, make, onPointer, refused, sentence } from "./basics.js";
import { colour, head, overlay, paint, unpack } from "./maps.js";
import { given, kind, say } from "./input.js";
import { Training } from "./training.js";

const STEP = 10; // tokens that arrow up and down go

export class Look {
  constructor(root, letter, choice) {
    Object.assign(this, { root, letter, choice });
    this.state = $(".state", root);
    this.canvas = $(".map", root);
    this.heads = $(".head", root);
    this.depths = $(".depth", root);
    this.asked = new Newest();
    this.training = new Training(root, choice, (words, trouble) => this.say(words, trouble), () => { if (!this.told?.trained) this.look(); });
    this.heads.addEventListener("change", () => this.draw());
    this.depths.addEventListener("change", () => { this.depth = Number(this.depths.value); this.draw(); });
    onPointer(this.canvas, (event) => this.point(event));
  }

  say(words, trouble = false) {
    this.state.className = trouble ? "state trouble" : "state quiet";
    this.state.textContent = words;
  }

  stop(words) {
    this.asked.stop();
    this.training.stop();
    this.root.setAttribute("aria-busy", "true");
    if (words) this.say(words);
  }

  async look() {
    this.training.stop();
    await this.asked.run(async (signal) => {
      this.root.setAttribute("aria-busy", "true");
      this.say("Looking");
      this.state.classList.add("waiting");
      try {
        this.show(await ask("look", { choice: this.choice(), kind: kind(), input: given() }, signal));
      } catch (problem) {
        if (problem.name === "AbortError") throw problem;
        this.showNothing(refused(problem).message, true);
      }
      this.root.setAttribute("aria-busy", "false");
    });
  }

  showNothing(words, trouble) {
    this.told = undefined;
    this.reveal(false);
    this.say(sentence(words), trouble);
  }

  reveal(shown) {
    for (const part of [".train", ".seen", ".pick", ".canvas", ".readout", "figcaption"]) $(part, this.root).hidden = !shown;
  }

  show(told) {
    if (told.kind === "none") return this.showNothing(told.words, false);
    this.told = told;
    this.maps = told.layers.map(unpack);
    this.reveal(true);
    this.say(sentence(told.model));
    say(told.remark);
    $("figcaption", this.root).textContent = `${sentence(told.words)} Each row has its full colour at its largest weight.`;
    fill(this.depths, told.depths.map((depth) => `layer ${depth}`), this.depth ?? told.depths.length - 1);
    fill(this.heads, told.names, Number(this.heads.value) || 0);
    const count = this.maps[0].shape[1], middle = told.grid ? (count + told.grid[1]) / 2 : count - 1;
    this.chosen = Math.min(this.picked ?? middle, count - 1);
    if (told.signs) this.showTokens(told.signs); else this.showImage(told);
    this.box.addEventListener("keydown", (event) => this.key(event));
    onPointer(this.box, (event) => this.touch(event));
    $(".seen", this.root).replaceChildren(this.box);
    this.draw();
    this.training.follow();
  }

  showTokens(signs) {
    this.options = signs.map((sign, number) => make("span", { role: "option", id: `token-${this.letter}-${number}`, text: sign === "\n" ? "↵\n" : sign }));
    this.box = make("div", { className: "tokens", tabIndex: 0, role: "listbox", ariaLabel: "Tokens: arrow keys choose the one whose row is shown" }, ...this.options);
  }

  showImage({ side, grid, image }) {
    this.image = { side, grid, pixels: Uint8Array.from(atob(image), (sign) => sign.charCodeAt(0)) };
    const label = `Image of ${grid[0]} x ${grid[1]} patches: arrow keys choose the one whose row is shown`;
    this.box = make("div", { className: "patches", tabIndex: 0, role: "group", ariaLabel: label }, make("canvas"));
  }

  key(event) {
    const columns = this.told.grid ? this.told.grid[1] : STEP, last = this.map.n - 1;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -last, End: last }[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const next = this.chosen + step;
    if (this.told.grid && Math.abs(step) === columns && (next < 0 || next > last)) return; // no row there
    this.pick(Math.max(0, Math.min(last, next)));
    if (this.told.signs) this.options[this.chosen].scrollIntoView({ block: "nearest" });
  }

  touch(event) {
    if (this.told.grid) {
      const [rows, columns] = this.told.grid, [i, j] = cell(event, { n: rows, m: columns }, $("canvas", this.box));
      return this.pick(i * columns + j);
    }
    const option = event.target.closest("[role=option]");
    if (option) this.pick(this.options.indexOf(option));
  }

  point(event) {
    if (!this.told) return;
    const [i, j] = cell(event, this.map);
    this.pick(i);
    $(".readout", this.root).textContent = `${this.name(i)} from ${this.name(j)}: ${this.map.weight(i, j).toPrecision(2)}`;
  }

  pick(number) {
    this.picked = this.chosen = number;
    this.draw();
  }

  get map() { return head(this.maps[Number(this.depths.value)], Number(this.heads.value)); }

  name(number) {
    const { grid, signs } = this.told;
    if (grid) return `row ${Math.floor(number / grid[1])}, column ${number % grid[1]}`;
    const sign = { " ": "space", "\n": "line end" }[signs[number]] ?? `“${signs[number]}”`;
    return `${sign} (${number})`;
  }

  draw() {
    if (!this.told) return;
    const { map, chosen } = this, row = map.row(chosen);
    paint(this.canvas, map, chosen);
    this.canvas.setAttribute("aria-label", "Attention map; queries downwards, keys to the right");
    if (this.told.grid) overlay($("canvas", this.box), this.image, row, chosen); else this.drawTokens(row);
    const most = [...row.keys()].filter((j) => row[j]).sort((one, other) => Math.abs(row[other]) - Math.abs(row[one])).slice(0, 3);
    const words = most.map((j) => `${this.name(j)} ${map.weight(chosen, j).toPrecision(2)}`).join(", ") || "nothing";
    $(".readout", this.root).textContent = `${this.name(chosen)} takes most from ${words}.`;
  }

  drawTokens(row) {
    this.options.forEach((option, number) => {
      const [red, green, blue] = colour(row[number]);
      const light = 0.2126 * (red / 255) ** 2.2 + 0.7152 * (green / 255) ** 2.2 + 0.0722 * (blue / 255) ** 2.2;
      option.style.backgroundColor = `rgb(${red} ${green} ${blue})`;
      option.style.color = light > 0.18 ? "#16171a" : "#ffffff";
      option.setAttribute("aria-selected", String(number === this.chosen));
    });
    this.box.setAttribute("aria-activedescendant", this.options[this.chosen].id);
  }
}
