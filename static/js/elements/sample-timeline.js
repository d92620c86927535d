// What the model says to the same prompts as it learns: a slider along the curve. Follows the newest sample until the
// reader looks at an older one. While it learns, it can be asked at any time.

import { get, newKey, post } from "../lib/api.js";
import { h, setText, throttled } from "../lib/dom.js";
import { integer } from "../lib/format.js";
import { t, tn } from "../lib/i18n.js";
import { RunElement } from "../lib/run-feed.js";
import { toastError } from "./toast-stack.js";

class SampleTimeline extends RunElement {
  follow() {
    if (!this.slider) this.#build();
    this.steps = [];
    this.bySteps = new Map();
    this.follows = true;
    this.#show();
    this.#wait(false);
    this.#allow();
    this.on("state", () => this.#allow());
    this.on("sample", () => this.#wait(false));
    const soon = throttled(() => this.#load(), 500);
    for (const type of ["sample", "restart", "state"]) this.on(type, soon);
    document.addEventListener("step-picked", (event) => this.#pick(event.detail), { signal: this.listening.signal });
    this.#load();
  }

  #build() {
    this.slider = h("input", { type: "range", min: "0", step: "1", "aria-label": t("Step of the sample"), oninput: () => this.#move(Number(this.slider.value)) });
    this.where = h("output.number.small");
    this.newest = h("button.button.tiny", { type: "button", onclick: () => this.#move(this.steps.length - 1) }, t("Newest"));
    this.ask = h("button.button.tiny", { type: "button", hidden: true, onclick: () => this.#ask() }, t("Ask it now"));
    this.list = h("dl.samples");
    this.note = h("p.muted");
    this.bar = h("div.sample-bar", {}, this.slider, this.where, this.newest);
    this.replaceChildren(h("div.card-head", {}, h("h2", {}, t("What it says")), this.ask), this.note, this.bar, this.list);
  }

  /** A wish lasts until an answer comes, or until nobody is there who could give one. */
  #allow() {
    const run = this.feed.run; // not known yet, where this is the first to follow it
    const can = run?.desired === "run" && ["starting", "running"].includes(run.state);
    if (!can) this.#wait(false);
    this.ask.hidden = !can;
  }

  #wait(is) {
    for (const name of ["aria-busy", "aria-disabled"]) is ? this.ask.setAttribute(name, "true") : this.ask.removeAttribute(name);
  }

  async #ask() {
    if (this.ask.getAttribute("aria-disabled") === "true") return;
    this.follows = true;
    this.#wait(true);
    try {
      await post(`/runs/${this.feed.id}/sample`, {}, newKey());
    } catch (error) {
      this.#wait(false);
      toastError(error);
    }
  }

  async #load() {
    const feed = this.feed;
    const turn = (this.turn = (this.turn ?? 0) + 1);
    let items;
    try {
      ({ items } = await get(`/runs/${feed.id}/samples`));
    } catch (error) {
      if (this.feed === feed) setText(this.note, error.message);
      return;
    }
    if (this.feed !== feed || this.turn !== turn) return;
    const before = this.steps[this.at];
    this.bySteps = Map.groupBy ? Map.groupBy(items, (s) => s.step) : grouped(items);
    this.steps = [...this.bySteps.keys()].sort((a, b) => a - b);
    this.at = this.follows ? this.steps.length - 1 : this.#nearest(before);
    this.#show();
  }

  #move(at) {
    this.at = at;
    this.follows = at === this.steps.length - 1;
    this.#show();
  }

  /** The sample nearest to a point of the curve. */
  #pick(step) {
    if (this.steps.length) this.#move(this.#nearest(step));
  }

  #nearest(step) {
    let best = 0;
    this.steps.forEach((each, index) => {
      if (Math.abs(each - step) < Math.abs(this.steps[best] - step)) best = index;
    });
    return best;
  }

  #show() {
    const count = this.steps.length;
    this.bar.hidden = count === 0;
    setText(this.note, count === 0 ? t("The model has not spoken yet. It answers the same prompts about ten times while it trains, and whenever you ask.")
      : tn("The same prompts, asked once so far. Click a point of the curve to hear what it said then.",
           "The same prompts, asked %(num)s times so far. Click a point of the curve to hear what it said then.", count));
    if (count === 0) {
      this.list.replaceChildren();
      return;
    }
    this.slider.max = String(count - 1);
    this.slider.value = String(this.at);
    this.slider.disabled = count === 1;
    const step = this.steps[this.at];
    setText(this.where, t("step %(step)s", { step: integer(step) }));
    this.slider.setAttribute("aria-valuetext", this.where.textContent);
    this.newest.hidden = this.follows;
    this.list.replaceChildren(...this.bySteps.get(step).map((sample) =>
      h("div", {}, h("dt", {}, sample.prompt), h("dd", {}, sample.text.trim() || t("(nothing)")))));
  }
}

function grouped(items) {
  const found = new Map();
  for (const item of items) found.set(item.step, [...(found.get(item.step) ?? []), item]);
  return found;
}

customElements.define("sample-timeline", SampleTimeline);
