// <compare-votes data-base>: deletes votes, and makes a dataset of them that a DPO run then learns from.

import { get, newKey, post, remove } from "../lib/api.js";
import { onReturn, setBusy } from "../lib/dom.js";
import { t } from "../lib/i18n.js";
import { toast, toastError } from "./toast-stack.js";

const LOOK_EVERY_MS = 500;

class CompareVotes extends HTMLElement {
  connectedCallback() {
    this.train = this.querySelector("[data-train]");
    this.problem = this.querySelector("[data-problem]");
    this.train?.addEventListener("click", () => this.#train());
    this.addEventListener("click", ({ target }) => {
      const button = target.closest("[data-delete]");
      if (button) this.#delete(button);
    });
    onReturn(() => this.train && setBusy(this.train, false));
  }

  disconnectedCallback() {
    this.isGone = true;
  }

  async #delete(button) {
    setBusy(button, true);
    try {
      await remove(`/votes/${button.dataset.delete}`);
    } catch (error) {
      if (error.status !== 404) { // else another tab did
        toastError(error);
        setBusy(button, false);
        return;
      }
    }
    const row = button.closest("tr");
    const next = (row.nextElementSibling ?? row.previousElementSibling)?.querySelector("[data-delete]");
    row.remove();
    (next ?? this.querySelector("a")).focus();
    toast(t("The vote was deleted."));
  }

  async #train() {
    this.problem.hidden = true;
    setBusy(this.train, true);
    try {
      const dataset = await this.#ready((await post("/datasets", { source: { kind: "votes" } }, { key: newKey() })).id);
      const query = { stage: "dpo", dataset_id: dataset.id, ...(this.dataset.base ? { base_checkpoint_id: this.dataset.base } : {}) };
      location.assign(`/runs/new?${new URLSearchParams(query)}`);
    } catch (error) {
      this.problem.textContent = [error.message, error.hint].filter(Boolean).join(" ");
      this.problem.hidden = false;
      setBusy(this.train, false);
    }
  }

  /** The dataset once its import has ended. */
  async #ready(id) {
    while (!this.isGone) {
      const dataset = await get(`/datasets/${id}`);
      if (dataset.state === "ready") return dataset;
      if (dataset.state === "failed") throw Object.assign(new Error(dataset.error?.message ?? t("The import failed.")), { hint: dataset.error?.hint });
      await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS));
    }
    throw new DOMException("left", "AbortError");
  }
}

customElements.define("compare-votes", CompareVotes);
