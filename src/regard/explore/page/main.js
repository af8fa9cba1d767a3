// The page: one mechanism, or two side by side.

import { $, ask, refused } from "./basics.js";
import { begin, say } from "./input.js";
import { dark } from "./maps.js";
import { Panel } from "./panel.js";
import { settings } from "./training.js";

const FIRST = "local", SECOND = "linear_transformer", THIRD = "multi_head";
const wide = matchMedia("(min-width: 60rem)"), compare = $("#compare"), place = $("#panels"), panels = [];
let listed = [];

const add = (letter, name) => {
  const panel = new Panel(letter, listed, name);
  panels.push(panel);
  place.append(panel.root);
  panel.describe();
};
const openCards = (open) => { for (const card of document.querySelectorAll(".card")) card.open = open; };

compare.addEventListener("change", () => {
  place.className = compare.checked ? "two" : "one";
  if (compare.checked) add("B", panels[0].names.value === SECOND ? THIRD : SECOND); else panels.pop().close();
  openCards(wide.matches && !compare.checked);
});
dark.addEventListener("change", () => { for (const panel of panels) panel.redraw(); });
begin(
  () => { for (const panel of panels) panel.changedInput(); },
  () => { for (const panel of panels) panel.changedKind(); },
);

try {
  const told = await ask("mechanisms", {});
  listed = told.mechanisms;
  settings.budget = told.budget;
  compare.disabled = false;
  add("A", FIRST);
  openCards(wide.matches);
} catch (problem) {
  say(refused(problem).message, true);
}
