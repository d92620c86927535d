// Deleting a dataset: asks first, and says what still uses it where the studio refuses.

import { remove } from "../lib/api.js";
import { t } from "../lib/i18n.js";
import { wireDialog } from "./dataset-dialog.js";
import { problemNotice } from "./dataset-problems.js";

class DatasetDelete extends HTMLElement {
  connectedCallback() {
    this.problem = this.querySelector("[data-problem]");
    this.dialog = wireDialog(this, () => this.problem.replaceChildren());
    this.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#delete(event.submitter ?? this.querySelector("[type=submit]"));
    });
  }

  async #delete(button) {
    button.setAttribute("aria-busy", "true");
    button.disabled = true;
    this.problem.replaceChildren();
    try {
      await remove(`/datasets/${this.getAttribute("dataset")}`);
      location.assign("/datasets");
    } catch (error) {
      if (error.status === 404) location.assign("/datasets"); // deleted already, in another tab
      else {
        this.problem.replaceChildren(problemNotice({ message: error.message || t("It could not be deleted."), hint: error.hint }));
        button.disabled = false;
        button.removeAttribute("aria-busy");
      }
    }
  }
}

customElements.define("dataset-delete", DatasetDelete);
