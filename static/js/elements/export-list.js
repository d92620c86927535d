// <export-list>: cancels exports that are being made, and deletes those that are.

import { post, remove } from "../lib/api.js";
import { setBusy } from "../lib/dom.js";
import { t } from "../lib/i18n.js";
import { toast, toastError } from "./toast-stack.js";

class ExportList extends HTMLElement {
  connectedCallback() {
    this.addEventListener("click", this);
  }

  disconnectedCallback() {
    this.removeEventListener("click", this);
  }

  async handleEvent({ target }) {
    const button = target.closest("[data-delete], [data-cancel-job]");
    if (!button || button.getAttribute("aria-busy") === "true") return;
    setBusy(button, true);
    const { delete: made, cancelJob } = button.dataset;
    try {
      if (made) await remove(`/exports/${made}`);
      else await post(`/jobs/${cancelJob}/cancel`);
    } catch (error) {
      const isOver = error.status === (made ? 404 : 409); // deleted in another tab, or it has ended: the list will tell
      if (!isOver) {
        toastError(error);
        setBusy(button, false);
        return;
      }
    }
    if (made) this.#forget(button.closest("tr"));
    await this.querySelector("live-fragment")?.refresh();
  }

  /** The row goes, and the focus to the next. */
  #forget(row) {
    const next = (row.nextElementSibling ?? row.previousElementSibling)?.querySelector("[data-delete]");
    row.remove();
    (next ?? document.querySelector("main .page-head > a"))?.focus();
    toast(t("The export was deleted."));
  }
}

customElements.define("export-list", ExportList);
