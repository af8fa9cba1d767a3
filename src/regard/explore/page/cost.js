// What a mechanism costs against length, beside dense attention.

import { $, Newest, ask, make, refused, seconds, sentence, table } from "./basics.js";
import { chart } from "./chart.js";

const big = (number, base, units) => {
  let step = 0;
  for (; number >= base && step < units.length - 1; step += 1) number /= base;
  return `${Number(number.toPrecision(3))} ${units[step]}`;
};
const work = (number) => big(number, 1000, ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"]);
const memory = (number) => big(number, 1024, ["B", "KiB", "MiB", "GiB"]);

export class Cost {
  constructor(root) {
    this.root = root;
    this.verdict = $(".verdict", root);
    this.asked = new Newest();
  }

  stop() {
    this.asked.stop();
    this.root.setAttribute("aria-busy", "true");
    this.verdict.classList.remove("waiting");
    this.verdict.textContent = "";
  }

  async measure(choice, name) {
    await this.asked.run(async (signal) => {
      this.root.setAttribute("aria-busy", "true");
      this.verdict.textContent = "Measuring on this machine";
      this.verdict.classList.add("waiting");
      let told, error;
      try { told = await ask("cost", { choice }, signal); } catch (problem) {
        if (problem.name === "AbortError") throw problem;
        error = refused(problem);
      }
      this.verdict.classList.remove("waiting");
      this.root.setAttribute("aria-busy", "false");
      $(".numbers", this.root).hidden = Boolean(error);
      $(".chart", this.root).replaceChildren();
      $("figcaption", this.root).textContent = error ? "" : sentence([told.how, told.stopped].filter(Boolean).join("; "));
      this.verdict.textContent = sentence(error ? error.message : told.crossover || told.stopped);
      if (!error) this.draw(told, name);
    });
  }

  draw(told, name) {
    chart($(".chart", this.root), told, name);
    const dense = Object.fromEntries(told.dense), whole = (length) => length.toLocaleString("en");
    const parts = [table([told.unit, name, "dense attention"], told.own.map(([length, time]) => [whole(length), seconds(time), seconds(dense[length])]))];
    if (told.counted.length) {
      const rows = told.counted.map(({ who, length, flops, memory: size }) => [whole(length), who === "own" ? name : "dense attention", work(flops), memory(size)]);
      parts.push(make("p", { className: "quiet", text: "Counted for the attention itself, between the projections:" }));
      parts.push(table([told.unit, "", "work", "memory beyond inputs"], rows));
    }
    $(".numbers .scroll", this.root).replaceChildren(...parts);
  }
}
