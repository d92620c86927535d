// Short words about what just happened: toast("Saved."), toastError(error). Errors stay until they are closed.

import { h } from "../lib/dom.js";
import { t } from "../lib/i18n.js";

const SHOWN_MS = 5000;

class ToastStack extends HTMLElement {}
customElements.define("toast-stack", ToastStack);

function show(kind, message, hint, stays) {
  const stack = document.querySelector("toast-stack");
  if (!stack) return;
  const toast = h(`div.notice.${kind}`, {},
    h("div", {}, h("p", {}, message), hint ? h("p.hint.small", {}, hint) : null),
    h("button.button.quiet.tiny", { type: "button", onclick: () => toast.remove() }, t("Close")));
  stack.append(toast);
  if (!stays) setTimeout(() => toast.remove(), SHOWN_MS);
}

export function toast(message) {
  show("good", message, "", false);
}

/** The sentence of a failed request, with what to do about it. */
export function toastError(error) {
  if (error.name === "AbortError") return;
  show("bad", error.message, error.hint ?? "", true);
}
