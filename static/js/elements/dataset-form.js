// What the forms of datasets that the studio makes by itself have in common: the request, and what follows it.

import { newKey, post } from "../lib/api.js";
import { t } from "../lib/i18n.js";
import { followImport } from "./dataset-after.js";
import { checkNumbers, clearProblems, sayAt, showProblems } from "./dataset-problems.js";

export class DatasetForm extends HTMLElement {
  connectedCallback() {
    this.form = this.querySelector("form");
    this.after = this.querySelector("[data-after]");
    this.key = newKey();
    this.form.addEventListener("change", () => {
      this.key = newKey();
      this.choose();
    });
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit(this.form.querySelector("[type=submit]"));
    });
    this.choose();
  }

  /** Show what belongs to what is chosen. */
  choose() {}

  /** What can be seen from here to be missing or wrong in the request `asked`: [field, words] each. */
  wrong() {
    return [];
  }

  /** What must be there before the dataset is asked for. */
  async prepare() {}

  /** It is on its way. */
  accepted() {}

  async #submit(button) {
    clearProblems(this.form);
    const asked = this.asked();
    if (!this.#check(asked)) return;
    button.setAttribute("aria-busy", "true");
    button.disabled = true;
    try {
      await this.prepare(asked);
      const dataset = await post("/datasets", asked, { key: this.key });
      this.key = newKey();
      this.accepted();
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

  #check(asked) {
    const wrong = this.wrong(asked);
    for (const [name, message] of wrong) sayAt(this.form, name, message);
    if (wrong.length) this.form.querySelector(`[name=${wrong[0][0]}]`).focus();
    return checkNumbers(this.form) && wrong.length === 0;
  }

  #again() {
    this.after.hidden = true;
    this.after.replaceChildren();
    this.form.hidden = false;
    this.form.querySelector("input, select").focus();
  }
}

/** The languages of the starter corpus: at least one. */
export const noLanguage = (languages) => (languages.length ? [] : [["languages", t("Choose at least one language.")]]);
