// <copy-button data-text="..."> round a button: puts the text on the clipboard, and says that it did.
// With data-from="ID" it copies what that element says, with a function `textOf` what that gives.

import { h } from "../lib/dom.js";
import { t } from "../lib/i18n.js";
import { toastError } from "./toast-stack.js";

const SHOWN_MS = 2000;

class CopyButton extends HTMLElement {
  connectedCallback() {
    this.button = this.querySelector("button");
    this.button.addEventListener("click", this);
  }

  disconnectedCallback() {
    this.button.removeEventListener("click", this);
    clearTimeout(this.timer);
  }

  async handleEvent() {
    const text = this.textOf ? this.textOf() : this.dataset.from ? document.getElementById(this.dataset.from).textContent : this.dataset.text;
    if (!(await toClipboard(text))) {
      toastError({ message: t("The browser does not allow copying here."), hint: text });
      return;
    }
    this.button.classList.add("copied");
    this.said ??= this.appendChild(h("span.visually-hidden", { role: "status" }));
    this.said.textContent = t("Copied.");
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.button.classList.remove("copied");
      this.said.textContent = "";
    }, SHOWN_MS);
  }
}

/** Pages that do not come by https or from this machine have no clipboard, only the old command. */
async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const focused = document.activeElement;
    const area = h("textarea.visually-hidden", { "aria-hidden": "true", tabindex: "-1" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return done;
  }
}

customElements.define("copy-button", CopyButton);
