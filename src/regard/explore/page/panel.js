// One half of the page: a mechanism with its parameters, and all that is shown of it.

import { $, Newest, ask, later, make, refused } from "./basics.js";
import { Cost } from "./cost.js";
import { kind } from "./input.js";
import { Look } from "./look.js";
import { Parameters } from "./parameters.js";
import { Pattern } from "./pattern.js";

const GROUPS = { sequence: "On sequences", set: "On sets", map: "On images", pair: "On pairs of inputs" };

/** A paper's number as a link; nothing is fetched before it is followed. */
const linked = (text) => {
  const [, site, number] = text.match(/^(arXiv:|doi:)(\S+)(?= \()/) ?? [];
  if (!number) return text;
  const href = site === "arXiv:" ? `https://arxiv.org/abs/${number}` : `https://doi.org/${number}`;
  return make("a", { href, target: "_blank", rel: "noreferrer", text });
};

export class Panel {
  constructor(letter, listed, name) {
    this.root = $("#panel").content.cloneNode(true).firstElementChild;
    this.root.setAttribute("aria-label", `Mechanism ${letter}`);
    $(".letter", this.root).textContent = letter;
    this.names = $(".name", this.root);
    for (const [data, title] of Object.entries(GROUPS)) {
      const some = listed.filter((one) => one.data === data).map((one) => make("option", { value: one.name, text: one.title }));
      this.names.append(make("optgroup", { label: title }, ...some));
    }
    this.names.value = name;
    this.names.addEventListener("change", () => this.describe());
    this.described = new Newest();
    this.asked = new Newest();
    const changed = later(250, () => this.refresh());
    this.parameters = new Parameters(this.root, letter, changed, () => this.told.data !== "map" && kind() !== "image");
    this.pattern = new Pattern($("figure.pattern", this.root), changed);
    this.cost = new Cost($("figure.cost", this.root));
    this.look = new Look($("figure.look", this.root), letter, () => this.choice);
  }

  get choice() { return { name: this.names.value, ...this.parameters.values }; }

  async describe() {
    await this.described.run(async (signal) => {
      try { this.told = await ask("describe", { name: this.names.value }, signal); } catch (problem) {
        if (problem.name === "AbortError") throw problem;
        return this.parameters.refuse(refused(problem).message);
      }
      const { summary, card, only_code: only } = this.told;
      $(".summary", this.root).textContent = summary;
      $(".card dl", this.root).replaceChildren(...card.flatMap(([term, text]) => [make("dt", { text: term }), make("dd", {}, linked(text))]));
      Object.assign($(".only-code", this.root), { hidden: !only.length, textContent: `In code only: ${only.join(", ")}.` });
      this.parameters.show(this.told);
      await this.refresh();
    });
  }

  async refresh() {
    this.stop();
    await this.asked.run(async (signal) => {
      let told;
      try { told = await ask("picture", { choice: this.choice, length: this.pattern.length.value }, signal); } catch (problem) {
        if (problem.name === "AbortError") throw problem;
        return this.refuse(refused(problem).message);
      }
      this.able = true;
      this.parameters.accept();
      $(".call", this.root).textContent = told.call;
      this.pattern.show(told);
      this.look.look();
      this.cost.measure(this.choice, this.names.selectedOptions[0].text);
    });
  }

  refuse(words) {
    this.able = false;
    $(".call", this.root).textContent = "";
    this.pattern.root.setAttribute("aria-busy", "true");
    this.cost.stop();
    this.look.stop("Something above is refused; mend it to go on.");
    if (words.startsWith("positions:")) this.pattern.refuse(words); else this.parameters.refuse(words);
  }

  /** Nothing that belongs to other parameters goes on. */
  stop() {
    this.asked.stop();
    this.cost.stop();
    this.look.stop();
  }

  changedInput() { if (this.able) this.look.look(); }

  changedKind() {
    if (this.told && this.parameters.follow()) this.refresh(); else this.changedInput();
  }

  redraw() {
    this.pattern.draw();
    this.look.draw();
  }

  close() {
    this.described.stop();
    this.stop();
    this.root.remove();
  }
}
