// The first-model wizard: writes the starter world (or takes the one of an earlier time), then starts the pipeline.

import { get, newKey, post } from "../lib/api.js";
import { onReturn, setBusy, setText } from "../lib/dom.js";
import { t, tn } from "../lib/i18n.js";
import { starterSource, stagesFor, withSource } from "../lib/first-model.js";

const LOOK_EVERY_MS = 400;
const WRITE_WITHIN_MS = 300_000;

class FirstModel extends HTMLElement {
  connectedCallback() {
    this.form = this.querySelector("form");
    this.keys = new Map();
    this.form.addEventListener("input", () => this.keys.clear());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#start();
    });
    onReturn(() => {
      setBusy(this.querySelector("[type=submit]"), false);
      this.#say("");
    });
  }

  async #start() {
    const button = this.querySelector("[type=submit]");
    const [minutes, preset, share] = this.form.elements.choice.value.split(":");
    const language = this.form.elements.language.value;
    const asked = { minutes: Number(minutes), preset, share: Number(share), languages: language ? [language] : null };
    this.#problem(null);
    setBusy(button, true);
    try {
      this.#say(t("Writing the starter world."));
      const [text, dialogues] = await Promise.all(["text", "dialogues"].map((part) => this.#dataset(part, asked)));
      this.#say(t("Starting the pipeline."));
      const pipeline = await post("/pipelines", {
        name: tn("First model, %(num)s minute", "First model, %(num)s minutes", asked.minutes),
        stages: stagesFor(asked, text, dialogues),
      }, { key: this.#key("pipeline") });
      this.keys.clear(); // the next one is another
      location.assign(`/pipelines/${pipeline.id}`);
    } catch (error) {
      this.#problem(error);
      this.#say("");
      setBusy(button, false);
    }
  }

  /** Id of a ready dataset with this part of the world; the same world is written once only. */
  async #dataset(part, asked) {
    const source = starterSource(part, asked);
    const { items } = await get("/datasets?limit=500");
    let dataset = withSource(items, source);
    dataset ??= await post("/datasets", { name: t("Starter world: %(part)s", { part }), source }, { key: this.#key(part) });
    const deadline = Date.now() + WRITE_WITHIN_MS;
    while (dataset.state === "importing") {
      if (Date.now() > deadline) throw new Error(t("The starter world is not ready after five minutes. Is a worker running? The system page says more."));
      await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS));
      dataset = await get(`/datasets/${dataset.id}`);
    }
    if (dataset.state === "failed") throw new Error(dataset.error?.message || t("The starter world could not be written."));
    return dataset.id;
  }

  /** One key for as long as the same is asked for: where an answer was lost, a second press starts nothing twice. */
  #key(name) {
    if (!this.keys.has(name)) this.keys.set(name, newKey());
    return this.keys.get(name);
  }

  #say(text) {
    setText(this.querySelector("[data-status]"), text);
  }

  #problem(error) {
    const place = this.querySelector("[data-problem]");
    place.hidden = error === null;
    place.textContent = error === null ? "" : [error.message, error.hint].filter(Boolean).join(" ");
  }
}

customElements.define("first-model", FirstModel);
