// The button that trains a small model, and how far it is.

import { $, Newest, ask, refused, sentence } from "./basics.js";
import { kind } from "./input.js";

const OFTEN = 400, SELDOM = 2000; // milliseconds between questions

export const settings = { budget: "" };

export class Training {
  /** `say` tells the reader, `done` is called when there is a trained model. */
  constructor(root, choice, say, done) {
    Object.assign(this, { choice, say, done });
    this.button = $(".train button", root);
    this.bar = $(".train progress", root);
    this.asked = new Newest();
    this.button.addEventListener("click", () => this.start());
  }

  stop() {
    this.asked.stop();
    clearTimeout(this.timer);
  }

  async start() {
    this.button.disabled = true;
    try { this.show(await ask("train", { choice: this.choice(), kind: kind() })); } catch (problem) {
      this.say(sentence(refused(problem).message), true);
    }
    this.button.disabled = false;
  }

  /** Ask how far a training is that may be on its way. */
  async follow() {
    await this.asked.run(async (signal) => {
      try { this.show(await ask("training", { choice: this.choice(), kind: kind() }, signal)); } catch (problem) {
        if (problem.name === "AbortError") throw problem;
        this.timer = setTimeout(() => this.follow(), SELDOM);
      }
    });
  }

  show({ status, share, words }) {
    const running = status === "waiting" || status === "training";
    this.button.textContent = `Train a small model (${settings.budget})`;
    this.button.hidden = running || status === "trained";
    this.bar.hidden = !running;
    this.bar.value = share;
    if (running) {
      this.say(status === "waiting" ? "The training waits for its turn." : `Training: ${words}.`);
      this.timer = setTimeout(() => this.follow(), OFTEN);
    } else if (status === "failed") this.say(sentence(`no model: ${words}`), true);
    else if (status === "trained") this.done();
  }
}
