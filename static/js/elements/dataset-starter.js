// The form of the starter corpus: the studio writes it, the page follows.

import { newKey, post } from "../lib/api.js";
import { t } from "../lib/i18n.js";
import { followImport } from "./dataset-after.js";
import { checkNumbers, clearProblems, sayAt, showProblems } from "./dataset-problems.js";

class DatasetStarter extends HTMLElement {
  connectedCallback() {
    this.form = this.querySelector("form");
    this.after = this.querySelector("[data-after]");
    this.key = newKey();
    this.form.addEventListener("change", () => { this.key = newKey(); });
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit(this.form.querySelector("[type=submit]"));
    });
  }

  /** The request's body. */
  #asked() {
    const values = new FormData(this.form);
    return { name: values.get("name").trim() || undefined,
             source: { kind: "starter", part: values.get("part"), minutes: Number(values.get("minutes")),
                       languages: values.getAll("languages"), seed: Number(values.get("seed")) } };
  }

  async #submit(button) {
    clearProblems(this.form);
    const asked = this.#asked();
    if (!asked.source.languages.length) {
      sayAt(this.form, "languages", t("Choose at least one language."));
      this.form.querySelector("[name=languages]").focus();
      return;
    }
    if (!checkNumbers(this.form)) return;
    button.setAttribute("aria-busy", "true");
    button.disabled = true;
    try {
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

  #again() {
    this.after.hidden = true;
    this.after.replaceChildren();
    this.form.hidden = false;
    this.form.querySelector("input").focus();
  }
}

customElements.define("dataset-starter", DatasetStarter);
