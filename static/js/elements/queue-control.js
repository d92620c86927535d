// The queue as people change it: runs up and down, their priority, and pausing the whole queue for maintenance. It wraps
// what the server renders: buttons with data-move or data-queue, inputs with data-priority.

import { newKey, patch, post } from "../lib/api.js";
import { t } from "../lib/i18n.js";
import { toast, toastError } from "./toast-stack.js";

const PAUSE = '[data-dialog="queue-dialog"]';
const RESUME = '[data-queue="resume"]';
const EVENTS = ["click", "input", "change", "focusout"];

class QueueControl extends HTMLElement {
  #typedIn = null; // the field with a number that was not sent yet

  connectedCallback() {
    for (const name of EVENTS) this.addEventListener(name, this);
    document.addEventListener("fragment", this);
  }

  disconnectedCallback() {
    for (const name of EVENTS) this.removeEventListener(name, this);
    document.removeEventListener("fragment", this);
  }

  handleEvent(event) {
    if (event.type === "fragment") return this.#showPriorities();
    if (event.type !== "click") {
      this.#typedIn = event.type === "input" ? event.target : null;
      return event.type === "change" && event.target.dataset.priority ? this.#prioritise(event.target) : undefined;
    }
    const button = event.target.closest("button");
    if (!button || button.getAttribute("aria-disabled") === "true" || button.getAttribute("aria-busy") === "true") return;
    if (button.dataset.move) this.#move(button);
    else if (button.dataset.queue === "resume") this.#resume(button);
    else if (button.dataset.dialog === "queue-dialog") openQueueDialog();
  }

  /** What others have set meanwhile; the field that one types in is left alone. */
  #showPriorities() {
    for (const input of this.querySelectorAll("[data-priority]")) {
      if (input !== this.#typedIn && !input.hasAttribute("aria-busy")) input.value = input.defaultValue;
    }
  }

  async #move(button) {
    const { move, run } = button.dataset;
    await this.#send(button, () => post(`/runs/${run}/move`, { to: move }, { key: newKey() }));
    // a row that went elsewhere was taken out and put back: the keyboard goes with it
    const same = this.querySelector(`[data-run="${CSS.escape(run)}"][data-move="${move}"]`);
    const other = same?.parentElement.querySelector("button:not([aria-disabled])");
    (same?.getAttribute("aria-disabled") === "true" ? other ?? same : same)?.focus();
  }

  async #prioritise(input) {
    const priority = Number(input.value);
    if (input.value === "" || !Number.isInteger(priority)) {
      input.value = input.defaultValue;
      toastError(new Error(t("This must be a whole number.")));
      return;
    }
    const run = input.dataset.priority;
    const had = input === document.activeElement;
    await this.#send(input, () => patch(`/runs/${run}`, { priority }));
    if (had) this.querySelector(`[data-priority="${CSS.escape(run)}"]`)?.focus();
  }

  async #resume(button) {
    if (await this.#send(button, () => post("/system/queue", { paused: false }, { key: newKey() }))) {
      toast(t("The queue goes on."));
      handOver(button, document.getElementById("queue-dialog") ? PAUSE : "#main"); // it is paused on one page alone
    }
  }

  async #send(control, request) {
    control.setAttribute("aria-busy", "true");
    let done = false;
    try {
      await request();
      done = true;
    } catch (error) {
      toastError(error);
    } finally {
      control.removeAttribute("aria-busy");
      await this.closest("live-fragment")?.refresh();
    }
    return done;
  }
}

customElements.define("queue-control", QueueControl);

/**
 * Pausing and resuming take the pressed button away: the keyboard goes to the one that undoes it. A refresh that was
 * under way may show the old state once more, so this waits for it, unless the keyboard has gone elsewhere meanwhile.
 */
function handOver(pressed, selector) {
  const look = () => {
    const { activeElement } = document;
    const isLeft = activeElement && activeElement !== document.body && activeElement !== pressed;
    const next = document.querySelector(selector);
    if (isLeft || next) document.removeEventListener("fragment", look);
    if (!isLeft) next?.focus();
  };
  document.addEventListener("fragment", look);
  look();
}

function openQueueDialog() {
  const dialog = document.getElementById("queue-dialog");
  dialog.querySelector(".field-error").textContent = "";
  dialog.showModal();
}

/** The dialog that pauses the queue; it stands beside the live part, so that what one types in it stays. */
export function bindQueueDialog() {
  const form = document.querySelector("form[data-queue-form]");
  if (!form) return; // not an admin
  const dialog = form.closest("dialog");
  form.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const submit = form.querySelector("[type=submit]");
    submit.disabled = true;
    try {
      const note = form.elements.note.value.trim();
      await post("/system/queue", { paused: true, ...(note ? { note } : {}) }, { key: newKey() });
      form.reset();
      dialog.close();
      const opener = document.querySelector(PAUSE); // the closed dialog gives the keyboard back to it
      await document.querySelector("live-fragment")?.refresh();
      handOver(opener, RESUME);
    } catch (error) {
      form.querySelector(".field-error").textContent = [error.message, error.hint].filter(Boolean).join(" ");
    } finally {
      submit.disabled = false;
    }
  });
}
