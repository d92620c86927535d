// <recipe-starter>: choose a recipe and its time; one button starts the whole line.

import { newKey, post } from "../lib/api.js";
import { setText } from "../lib/dom.js";
import { t } from "../lib/i18n.js";
import { bodyOf, minutesOf } from "../lib/recipe-form.js";

class RecipeStarter extends HTMLElement {
  connectedCallback() {
    this.form = this.querySelector("form");
    this.minutes = this.form.elements.minutes;
    this.key = newKey();
    this.form.addEventListener("input", (event) => {
      this.key = newKey(); // the same button on another wish is another pipeline
      if (event.target === this.minutes) this.isOwnTime = true;
      if (event.target.name === "recipe" && !this.isOwnTime) this.minutes.value = event.target.dataset.minutes;
      this.#shareOut();
    });
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#start();
    });
    this.#shareOut(); // a reload keeps what stood in the form
  }

  /** What each stage gets of the time. The cards that are not chosen keep their recipe's own time. */
  #shareOut() {
    for (const input of this.querySelectorAll("[name=recipe]")) {
      const minutes = input.checked && this.minutes.value !== "" ? Number(this.minutes.value) : Number(input.dataset.minutes);
      for (const place of input.parentElement.querySelectorAll("[data-share]")) {
        setText(place, t("%(minutes)s min", { minutes: minutesOf(Number(place.dataset.share), minutes) }));
      }
    }
  }

  async #start() {
    const button = this.querySelector("[type=submit]");
    const { recipe, minutes, language, preset } = Object.fromEntries(new FormData(this.form));
    this.#clear();
    if (this.minutes.validity.badInput) return this.#explain([{ field: "minutes", message: t("This is not a number; write it like 1.5.") }]);
    const title = this.querySelector(`label[for="recipe-${recipe}"]`).textContent;
    const name = minutes === "" ? title : t("%(title)s, %(minutes)s min", { title, minutes: Number(minutes) });
    button.disabled = true;
    button.setAttribute("aria-busy", "true");
    try {
      const line = await post("/pipelines", bodyOf({ recipe, minutes, language, preset }, name), { key: this.key });
      location.assign(`/pipelines/${line.id}`);
    } catch (error) {
      this.#explain(error.problems?.length ? error.problems : [error]);
      button.disabled = false;
      button.removeAttribute("aria-busy");
    }
  }

  #clear() {
    for (const place of this.querySelectorAll(".field-error")) place.textContent = "";
    for (const wrong of this.querySelectorAll("[aria-invalid]")) wrong.removeAttribute("aria-invalid");
    this.querySelector("[data-problem]").hidden = true;
  }

  #explain(problems) {
    const homeless = [];
    let first = null;
    for (const problem of problems) {
      const words = [problem.message, problem.hint].filter(Boolean).join(" ");
      const place = problem.field && this.querySelector(`[data-error="${CSS.escape(problem.field)}"]`);
      if (!place) {
        homeless.push(words);
        continue;
      }
      place.textContent = words;
      const wrong = place.closest(".field").querySelector("input, select");
      wrong.setAttribute("aria-invalid", "true");
      first ??= wrong;
    }
    const notice = this.querySelector("[data-problem]");
    notice.textContent = homeless.join(" ");
    notice.hidden = homeless.length === 0;
    first?.focus();
  }
}

customElements.define("recipe-starter", RecipeStarter);
