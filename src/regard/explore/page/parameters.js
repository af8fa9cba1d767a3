// The controls of a mechanism, and its refusals beside them.

import { $, make, sentence } from "./basics.js";

const AUTOMATIC = "automatic";
const plain = (name) => name.replaceAll("_", " ");

export class Parameters {
  /** `changed` is called when something was entered; `reads` tells whether input is read from left to right. */
  constructor(root, letter, changed, reads) {
    Object.assign(this, { root, letter, changed, reads });
    this.form = $(".parameters", root);
    this.form.addEventListener("submit", (event) => event.preventDefault());
  }

  show(told) {
    this.always = told.causal === "always";
    const fields = told.controls.map((control) => this.field(control));
    if (told.causal === "either") fields.unshift(this.check("Causal", { causal: "" }, this.reads()));
    if (told.heads) fields.unshift(this.entry("Heads", make("input", { value: "4", inputMode: "numeric" }), { heads: "" }, "the width is 64"));
    this.form.replaceChildren(...fields);
  }

  get values() {
    const heads = $("[data-heads]", this.form), causal = $("[data-causal]", this.form), options = {};
    for (const field of this.form.querySelectorAll("[data-option]")) {
      options[field.dataset.option] = field.type !== "checkbox" ? field.value : field.checked ? "True" : "False";
    }
    return { num_heads: heads ? heads.value : "4", causal: causal ? causal.checked : this.always, options };
  }

  /** Another kind of input: causality follows it as long as nobody has set it. Returns whether it changed. */
  follow() {
    const causal = $("[data-causal]", this.form);
    if (!causal || causal.dataset.touched || causal.checked === this.reads()) return false;
    causal.checked = this.reads();
    return true;
  }

  field({ name, kind, start, choices, optional, words, default: usual }) {
    const note = start === usual ? "" : `default ${usual}`;
    if (kind === "switch") return this.check(name, { option: name }, start === "True", words);
    if (kind === "choice") {
      const select = make("select", {}, ...choices.map((value) => make("option", { value, text: value === "None" ? AUTOMATIC : plain(value) })));
      select.value = start;
      return this.entry(name, select, { option: name }, note, words);
    }
    const entry = make("input", { value: start === "None" ? "" : start, inputMode: kind === "number" ? "decimal" : "text", autocomplete: "off" });
    if (optional) entry.placeholder = AUTOMATIC;
    return this.entry(name, entry, { option: name }, note, words);
  }

  entry(name, entry, data, note = "", words = "") {
    const field = make("label", { className: "field" }, make("span", { text: plain(name) }), entry);
    if (note) field.append(make("small", { text: note }));
    return this.tied(field, entry, data, words);
  }

  check(name, data, checked, words = "") {
    const box = make("input", { type: "checkbox", checked });
    return this.tied(make("label", { className: "field" }, make("span", { className: "check" }, box, plain(name))), box, data, words);
  }

  tied(field, entry, data, words) {
    Object.assign(entry.dataset, data);
    if (words) field.title = words;
    entry.addEventListener(entry.type === "checkbox" || entry.tagName === "SELECT" ? "change" : "input", () => {
      entry.dataset.touched = "yes";
      this.last = entry;
      this.changed();
    });
    return field;
  }

  /** Say why not: below the control that the words name, or that was changed last, else below all of them. */
  refuse(words) {
    this.accept();
    const named = [...this.form.querySelectorAll("[data-option], [data-heads]")].find((field) => {
      const name = field.dataset.option ?? "heads";
      return new RegExp(`(^|[^\\w])(num_)?${name}([^\\w]|$)`).test(words);
    });
    const guilty = named ?? (this.last?.isConnected && this.last.type !== "checkbox" ? this.last : undefined);
    if (!guilty) {
      Object.assign($(".refusal", this.root), { hidden: false, textContent: sentence(words) });
      return;
    }
    const id = `refusal-${this.letter}`;
    guilty.setAttribute("aria-invalid", "true");
    guilty.setAttribute("aria-describedby", id);
    guilty.closest(".field").append(make("p", { className: "trouble", id, role: "alert", text: sentence(words) }));
  }

  accept() {
    $(".refusal", this.root).hidden = true;
    for (const field of this.form.querySelectorAll("[aria-invalid]")) {
      field.removeAttribute("aria-invalid");
      field.removeAttribute("aria-describedby");
    }
    for (const old of this.form.querySelectorAll(".trouble")) old.remove();
  }
}
