// The part of the system page that the server renders again and again. Cancels jobs.

import { post, newKey } from "../lib/api.js";
import { toastError } from "./toast-stack.js";

class SystemLive extends HTMLElement {
  connectedCallback() {
    this.addEventListener("click", this);
  }

  disconnectedCallback() {
    this.removeEventListener("click", this);
  }

  async handleEvent(event) {
    const button = event.target.closest("[data-cancel-job]");
    if (!button || button.getAttribute("aria-busy") === "true") return;
    button.setAttribute("aria-busy", "true");
    try {
      await post(`/jobs/${button.dataset.cancelJob}/cancel`, {}, { key: newKey() });
      await this.closest("live-fragment")?.refresh();
    } catch (error) {
      toastError(error);
    } finally {
      button.removeAttribute("aria-busy");
    }
  }
}

customElements.define("system-live", SystemLive);
