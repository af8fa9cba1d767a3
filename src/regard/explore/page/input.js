// What the user gives: a text, a sequence or an image.

import { $, later, make } from "./basics.js";

const MOST_FILE = 24e6; // bytes of an image
const MOST_TEXT = 4096; // characters that the page holds: models read 256 bytes, and browsers take half a minute to lay out a megabyte

const EXAMPLES = {
  text: [
    ["English", "The keeper of the lighthouse wrote a letter to the keeper of the harbour. The letter said: the light of the lighthouse is out."],
    ["Accents and emoji", "Naïve café — the crème brûlée was déjà vu 🍮🍮, and again the crème brûlée."],
    ["Code", "def add(left, right):\n    return left + right\n\ndef sub(left, right):\n    return left - right\n"],
  ],
  sequence: [
    ["DNA", "GATTACAGATTACATTGCACGGATTACACCGTAGATTACAGGCTTAACGATTACATGC"],
    ["Protein", "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTMKTAYIAKQRQISFVK"],
    ["Numbers", "3 1 4 1 5 9 2 6 5 3 5 8 9 7 9 3 1 4 1 5 9 2 6 5 3 5 8 9 7 9 3 1 4 1 5 9"],
  ],
  image: [["Disc", 0], ["Square", 1], ["Cross", 2]],
};
const LABELS = { text: "Your text", sequence: "Your sequence: DNA, protein, numbers, any characters" };

const area = $("#text"), remark = $("#text-remark"), file = $("#file"), form = $("#input");
const state = { kind: "text", text: EXAMPLES.text[0][1], sequence: EXAMPLES.sequence[0][1], image: { example: 0 } };
const pasted = {}; // bytes of a text of which only the beginning is kept
let changed, changedKind;

const bytes = (text) => new TextEncoder().encode(text).length;

export const kind = () => state.kind;

/** As the server takes it. */
export const given = () => {
  if (state.kind === "image") return state.image;
  const text = state[state.kind];
  return { text: text.slice(0, MOST_TEXT), bytes: pasted[state.kind] || bytes(text) };
};

export const say = (words, trouble = false) => {
  remark.textContent = words;
  remark.className = trouble ? "trouble" : "quiet";
};

const tell = () => { say(""); changed(); };

const keep = (text, whole = 0) => {
  area.value = state[state.kind] = text;
  pasted[state.kind] = whole;
};

const show = () => {
  const onImage = state.kind === "image";
  $("#words").hidden = onImage;
  $("#picture").hidden = !onImage;
  if (!onImage) {
    $("#text-label").textContent = LABELS[state.kind];
    area.value = state[state.kind];
  }
  $("#examples").replaceChildren(make("span", { text: "Examples:" }), ...EXAMPLES[state.kind].map(([name, value]) => {
    const button = make("button", { type: "button", text: name });
    button.addEventListener("click", () => {
      if (onImage) { state.image = { example: value }; file.value = ""; } else keep(value);
      tell();
    });
    return button;
  }));
};

const switchTo = (kind) => {
  state.kind = kind;
  $(`[name="kind"][value="${kind}"]`).checked = true;
  show();
  say("");
  changedKind();
};

const take = (chosen) => {
  if (!chosen) return;
  if (chosen.size > MOST_FILE) return say(`${chosen.name} has ${(chosen.size / 1e6).toFixed(0)} MB; this page takes images of at most ${MOST_FILE / 1e6} MB.`, true);
  if (!chosen.size) return say(`${chosen.name} is empty.`, true);
  const reader = new FileReader();
  reader.addEventListener("error", () => say(`${chosen.name} cannot be read.`, true));
  reader.addEventListener("load", () => {
    state.image = { image: reader.result.slice(reader.result.indexOf(",") + 1) };
    if (state.kind === "image") tell(); else switchTo("image");
  });
  reader.readAsDataURL(chosen);
};

/** Listen; one function for another input, one for another kind of input. */
export const begin = (onInput, onKind) => {
  [changed, changedKind] = [onInput, onKind];
  const typed = later(400, tell);
  area.addEventListener("input", () => { state[state.kind] = area.value; pasted[state.kind] = 0; typed(); });
  area.addEventListener("paste", (event) => {
    const text = event.clipboardData.getData("text/plain");
    if (text.length <= MOST_TEXT) return;
    event.preventDefault();
    const whole = area.value.slice(0, area.selectionStart) + text + area.value.slice(area.selectionEnd);
    keep(whole.slice(0, MOST_TEXT), bytes(whole));
    tell();
  });
  for (const radio of document.querySelectorAll('[name="kind"]')) radio.addEventListener("change", () => switchTo(radio.value));
  form.addEventListener("submit", (event) => event.preventDefault());
  file.addEventListener("change", () => take(file.files[0]));
  document.addEventListener("paste", (event) => {
    const [chosen] = event.clipboardData?.files ?? [];
    if (chosen) { event.preventDefault(); take(chosen); }
  });
  for (const moment of ["dragover", "dragleave", "drop"]) form.addEventListener(moment, (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    form.classList.toggle("drop", moment === "dragover");
    if (moment === "drop") take(event.dataTransfer.files[0]);
  });
  show();
};
