// Who may look at whom: the pattern, or the map of an untrained layer.

import { $, cell, fill, onPointer, sentence } from "./basics.js";
import { head, paint, unpack } from "./maps.js";

const AXES = "Queries downwards, keys to the right.";

export class Pattern {
  constructor(root, changed) {
    this.root = root;
    this.canvas = $("canvas", root);
    this.heads = $(".head", root);
    this.length = $(".length", root);
    this.length.addEventListener("input", changed);
    this.heads.addEventListener("change", () => this.draw());
    onPointer(this.canvas, (event) => this.point(event));
  }

  show(told) {
    this.told = told;
    const none = told.kind === "none";
    this.length.removeAttribute("aria-invalid");
    $(".title", this.root).textContent = told.title;
    $("figcaption", this.root).textContent = sentence(told.words);
    $(".canvas", this.root).hidden = $(".readout", this.root).hidden = none;
    this.length.closest(".field").hidden = told.kind !== "pattern";
    fill(this.heads, none ? [""] : told.names, Number(this.heads.value) || 0);
    if (!none) this.maps = unpack(told);
    this.root.setAttribute("aria-busy", "false");
    this.draw();
  }

  refuse(words) {
    this.length.setAttribute("aria-invalid", "true");
    $("figcaption", this.root).textContent = sentence(words);
  }

  get drawn() { return this.told && this.told.kind !== "none"; }

  draw() {
    if (!this.drawn) return;
    paint(this.canvas, head(this.maps, Number(this.heads.value)));
    this.canvas.setAttribute("aria-label", `${this.told.title}; queries downwards, keys to the right`);
    $(".readout", this.root).textContent = AXES;
  }

  point(event) {
    if (!this.drawn) return;
    const map = head(this.maps, Number(this.heads.value)), [i, j] = cell(event, map), weight = map.weight(i, j);
    const share = weight >= 1 ? "may look" : weight > 0 ? `${Math.round(100 * weight)} % of the pairs may look` : "may not look";
    const words = this.told.kind === "pattern" ? share : `weight ${weight.toPrecision(2)}`;
    $(".readout", this.root).textContent = `Query ${this.name(i, map.n)} to key ${this.name(j, map.m)}: ${words}.`;
  }

  /** A cell of the picture: a position, several of them, or a pixel. */
  name(number, count) {
    const { grid, kind } = this.told;
    if (grid && count === grid[0] * grid[1]) return `row ${Math.floor(number / grid[1])}, column ${number % grid[1]}`;
    const wide = kind === "pattern" ? Number(this.length.value) / count : 1;
    return wide > 1 ? `${Math.floor(number * wide)} to ${Math.floor((number + 1) * wide) - 1}` : `${number}`;
  }
}
