// The form of a dataset that a teacher writes: questions, who answers them, and how. A key goes to the studio by itself,
// ahead of the rest, and is forgotten here.

import { api, newKey, post } from "../lib/api.js";
import { t } from "../lib/i18n.js";
import { followImport } from "./dataset-after.js";
import { checkNumbers, clearProblems, sayAt, showProblems } from "./dataset-problems.js";

class DatasetTeacher extends HTMLElement {
  connectedCallback() {
    this.form = this.querySelector("form");
    this.after = this.querySelector("[data-after]");
    this.key = newKey();
    this.form.addEventListener("change", () => {
      this.key = newKey();
      this.#choose();
    });
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit(this.form.querySelector("[type=submit]"));
    });
    const asked = this.form.elements.questions_dataset_id; // a page of questions leads here
    const wanted = new URLSearchParams(location.search).get("questions");
    if ([...asked.options].some((option) => option.value === wanted)) asked.value = wanted;
    this.#choose();
  }

  /** Show the fields that belong to what is chosen. */
  #choose() {
    const { questions_dataset_id: questions, teacher } = this.form.elements;
    const chosen = new Set([teacher.value, questions.value ? "dataset" : "starter"]);
    for (const part of this.querySelectorAll("[data-when]")) part.hidden = !chosen.has(part.dataset.when);
  }

  /** The request's body. */
  #asked() {
    const values = new FormData(this.form);
    const text = (name) => values.get(name)?.trim() || undefined;
    const number = (name) => Number(values.get(name));
    const source = { kind: "teacher", limit: number("limit"), max_tokens: number("max_tokens"), system: text("system") };
    if (text("temperature")) source.temperature = Number(text("temperature").replace(",", "."));
    if (values.get("questions_dataset_id")) source.questions_dataset_id = values.get("questions_dataset_id");
    else source.starter = { minutes: number("minutes"), languages: values.getAll("languages"), seed: number("seed") };
    if (values.get("teacher") === "endpoint") source.endpoint = { url: text("url") ?? "", model: text("model") ?? "" };
    else source.checkpoint_id = values.get("checkpoint_id");
    return { name: text("name"), source };
  }

  /** Say what can be seen from here to be missing or wrong; whether nothing is. */
  #check({ source }) {
    const wrong = [];
    if (source.starter && !source.starter.languages.length) wrong.push(["languages", t("Choose at least one language.")]);
    if (source.endpoint && !source.endpoint.url) wrong.push(["url", t("Give the address of the server.")]);
    if (source.endpoint && !source.endpoint.model) wrong.push(["model", t("Name a model that the server has.")]);
    if (Number.isNaN(source.temperature)) wrong.push(["temperature", t("Give a number from 0 to 2, or nothing.")]);
    for (const [name, message] of wrong) sayAt(this.form, name, message);
    if (wrong.length) this.form.querySelector(`[name=${wrong[0][0]}]`).focus();
    return checkNumbers(this.form) && wrong.length === 0;
  }

  async #submit(button) {
    clearProblems(this.form);
    const asked = this.#asked();
    if (!this.#check(asked)) return;
    button.setAttribute("aria-busy", "true");
    button.disabled = true;
    try {
      await this.#keepKey(asked.source.endpoint);
      const dataset = await post("/datasets", asked, { key: this.key });
      this.key = newKey();
      this.form.hidden = true;
      this.after.hidden = false;
      followImport(this.after, dataset, () => this.#again());
    } catch (error) {
      const rest = showProblems(this.form, error);
      if (rest) sayAt(this.form, "", rest.message, rest.hint);
    } finally {
      button.disabled = false;
      button.removeAttribute("aria-busy");
    }
  }

  async #keepKey(endpoint) {
    const field = this.form.elements.key;
    if (!endpoint || !field.value.trim()) return;
    await api("PUT", "/secrets/teacher", { body: { url: endpoint.url, key: field.value.trim() } });
    field.value = "";
  }

  #again() {
    this.after.hidden = true;
    this.after.replaceChildren();
    this.form.hidden = false;
    this.form.querySelector("select").focus();
  }
}

customElements.define("dataset-teacher", DatasetTeacher);
