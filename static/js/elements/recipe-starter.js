// <recipe-starter>: choose a recipe and its time; one button starts the whole line.

import { newKey } from "../lib/api.js";
import { onReturn, setBusy, setText } from "../lib/dom.js";
import { t } from "../lib/i18n.js";
import { bodyOf, minutesOf } from "../lib/recipe-form.js";
import { startLine } from "../lib/start-line.js";

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
    onReturn(() => setBusy(this.form.querySelector("[type=submit]"), false));
    // a reload keeps what stood in the form; a recipe that was chosen before this script was here has its own time
    if (this.minutes.value === this.minutes.defaultValue) this.minutes.value = this.querySelector("[name=recipe]:checked").dataset.minutes;
    this.#shareOut();
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
    const { recipe, minutes, language, preset } = Object.fromEntries(new FormData(this.form));
    const title = this.querySelector(`label[for="recipe-${recipe}"]`).textContent;
    const name = minutes === "" ? title : t("%(title)s, %(minutes)s min", { title, minutes: Number(minutes) });
    const isStarted = await startLine(this.form, () => bodyOf({ recipe, minutes, language, preset }, name), {
      key: this.key, placeOf: (field) => field && this.querySelector(`[data-error="${CSS.escape(field)}"]`) });
    if (isStarted) this.key = newKey();
  }
}

customElements.define("recipe-starter", RecipeStarter);
