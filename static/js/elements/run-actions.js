// Pause, resume, cancel, edit and delete. A click sends the wish; the page shows a new state only once the server says so.

import { h } from "../lib/dom.js";
import { get, patch, post, remove } from "../lib/api.js";
import { toastError } from "./toast-stack.js";

class RunActions extends HTMLElement {
  connectedCallback() {
    this.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button || button.getAttribute("aria-disabled") === "true") return;
      if (button.dataset.dialog) openDialog(document.getElementById(button.dataset.dialog));
      else if (button.dataset.action) this.#wish(button);
    });
  }

  get #kind() {
    return this.hasAttribute("pipeline") ? `pipelines/${this.getAttribute("pipeline")}` : `runs/${this.getAttribute("run")}`;
  }

  async #wish(button) {
    // not disabled: the keyboard's focus stays on it, and the morph makes it the next thing one can do
    button.setAttribute("aria-disabled", "true");
    button.setAttribute("aria-busy", "true");
    try {
      await post(`/${this.#kind}/${button.dataset.action}`, {});
    } catch (error) {
      toastError(error);
      button.removeAttribute("aria-disabled");
      button.removeAttribute("aria-busy");
    } finally {
      refreshFragment();
    }
  }
}

customElements.define("run-actions", RunActions);

export async function openDialog(dialog) {
  const error = dialog.querySelector(".field-error");
  if (error) error.textContent = "";
  const form = dialog.querySelector("form[data-run-form=edit]");
  if (form) {
    // what was changed meanwhile, perhaps in another tab, is what one edits
    try {
      fill(form, await get(`/runs/${form.dataset.run}`));
    } catch (failure) {
      toastError(failure);
      return;
    }
  }
  dialog.showModal();
}

function fill(form, run) {
  const values = { name: run.name, notes: run.notes, tags: run.tags.join(", ") };
  for (const [name, value] of Object.entries(values)) form.elements[name].value = form.elements[name].defaultValue = value;
}

/** The fields that the reader changed, and only those. */
function changesOf(form) {
  const changed = ["name", "notes", "tags"].filter((name) => form.elements[name].value !== form.elements[name].defaultValue);
  return Object.fromEntries(changed.map((name) => [name, name === "tags"
    ? form.elements.tags.value.split(",").map((tag) => tag.trim()).filter(Boolean) : form.elements[name].value]));
}

function refreshFragment() {
  for (const fragment of document.querySelectorAll("live-fragment")) fragment.refresh();
}

const REQUESTS = {
  cancel: (path, form) => post(`${path}/cancel`, { save: form.elements.save?.checked ?? false }),
  edit: (path, form) => patch(path, changesOf(form)),
  delete: (path) => remove(path),
};

/** Dialogs whose form says what to send: data-run-form = cancel, edit or delete. */
export function bindDialogs(root = document) {
  for (const form of root.querySelectorAll("form[data-run-form]")) {
    const dialog = form.closest("dialog");
    form.querySelector("[data-close]").addEventListener("click", () => dialog.close());
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const submit = form.querySelector("[type=submit]");
      const path = form.dataset.pipeline ? `/pipelines/${form.dataset.pipeline}` : `/runs/${form.dataset.run}`;
      submit.setAttribute("aria-busy", "true");
      submit.disabled = true;
      try {
        await REQUESTS[form.dataset.runForm](path, form);
        dialog.close();
        if (form.dataset.runForm === "delete") location.assign("/runs");
        else refreshFragment();
      } catch (error) {
        form.querySelector(".field-error").replaceChildren(error.message, error.hint ? h("span", {}, ` ${error.hint}`) : "");
      } finally {
        submit.removeAttribute("aria-busy");
        submit.disabled = false;
      }
    });
  }
}
