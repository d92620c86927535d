// The API's documentation: a filter over all operations, and the page's own try-it-out, loaded when it is wanted.

import { dataOf, debounced, h, setText } from "../lib/dom.js";
import { t, tn } from "../lib/i18n.js";

const NARROW = "(max-width: 56rem)";

class ApiDocs extends HTMLElement {
  connectedCallback() {
    this.input = this.querySelector("#docs-filter");
    this.said = this.querySelector("[data-found]");
    this.input.addEventListener("input", debounced(() => this.#filter(), 120));
    this.querySelector("[data-try]")?.addEventListener("click", (event) => this.#try(event.currentTarget));
    const contents = this.querySelector("details");
    if (matchMedia(NARROW).matches) contents.open = false;
    contents.addEventListener("click", (event) => {
      if (event.target.closest("a") && matchMedia(NARROW).matches) contents.open = false;
    });
    if (this.input.value) this.#filter(); // the browser filled it in again
  }

  /** Show what has every word somewhere in its text; the introduction stays. */
  #filter() {
    const words = this.input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (element) => {
      element.searchText ??= element.textContent.toLowerCase();
      return words.every((word) => element.searchText.includes(word));
    };
    let found = 0;
    for (const section of this.querySelectorAll(".operation")) {
      section.hidden = !fits(section);
      found += section.hidden ? 0 : 1;
    }
    for (const entry of this.querySelectorAll("[data-for]")) {
      entry.hidden = document.getElementById(entry.dataset.for).hidden;
    }
    for (const group of this.querySelectorAll("[data-group]")) {
      group.hidden = !group.querySelector(".operation:not([hidden]), [data-for]:not([hidden])");
    }
    setText(this.said, words.length === 0 ? "" : found === 0 ? t("Nothing found.")
      : tn("%(num)s found", "%(num)s found", found));
  }

  async #try(button) {
    const problem = this.querySelector("[data-problem]");
    problem.textContent = "";
    button.setAttribute("aria-busy", "true");
    const place = this.querySelector("#swagger");
    try {
      for (const href of dataOf(button, "styles")) document.head.append(h("link", { rel: "stylesheet", href }));
      const { show } = await import(button.dataset.try);
      place.hidden = false;
      await show(place, dataOf(button, "examples"));
      button.closest("p").remove();
      place.setAttribute("tabindex", "-1");
      place.focus();
    } catch {
      place.hidden = true;
      problem.textContent = t("It could not be loaded. Is the studio still running? Try again.");
    } finally {
      button.removeAttribute("aria-busy");
    }
  }
}

customElements.define("api-docs", ApiDocs);
