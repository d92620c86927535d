// The form of a dataset that a teacher writes: questions, who answers them, and how. A key goes to the studio by itself,
// ahead of the rest, and is forgotten here.

import { api } from "../lib/api.js";
import { t } from "../lib/i18n.js";
import { DatasetForm, noLanguage } from "./dataset-form.js";

class DatasetTeacher extends DatasetForm {
  connectedCallback() {
    const asked = this.querySelector("[name=questions_dataset_id]"); // a page of questions leads here
    const wanted = new URLSearchParams(location.search).get("questions");
    if ([...asked.options].some((option) => option.value === wanted)) asked.value = wanted;
    super.connectedCallback();
  }

  choose() {
    const { questions_dataset_id: questions, teacher } = this.form.elements;
    const chosen = new Set([teacher.value, questions.value ? "dataset" : "starter"]);
    for (const part of this.querySelectorAll("[data-when]")) part.hidden = !chosen.has(part.dataset.when);
  }

  /** The request's body. */
  asked() {
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

  wrong({ source }) {
    const { starter, endpoint, temperature } = source;
    const wrong = starter ? noLanguage(starter.languages) : [];
    if (endpoint && !endpoint.url) wrong.push(["url", t("Give the address of the server.")]);
    if (endpoint && !endpoint.model) wrong.push(["model", t("Name a model that the server has.")]);
    if (Number.isNaN(temperature)) wrong.push(["temperature", t("Give a number from 0 to 2, or nothing.")]);
    return wrong;
  }

  async prepare({ source: { endpoint } }) {
    const key = this.form.elements.key.value.trim();
    if (endpoint && key) await api("PUT", "/secrets/teacher", { body: { url: endpoint.url, key } });
  }

  /** Not before: a request that was refused is sent again, perhaps to another address. */
  accepted() {
    this.form.elements.key.value = "";
  }
}

customElements.define("dataset-teacher", DatasetTeacher);
