// <chat-notices>: says when a conversation could not be kept, and what to do. Silent while all is well. Events:
// "chat-keep" {how}: "retry", "mine" (overwrite), "theirs" (show the other version), "again" (it was deleted).

import { h } from "../lib/dom.js";
import { t } from "../lib/i18n.js";

class ChatNotices extends HTMLElement {
  connectedCallback() {
    this.setAttribute("role", "alert");
  }

  /** @param {import("../lib/conversation.js").Keeper} keeper */
  show(keeper) {
    const notice = this.#notice(keeper);
    const said = notice?.textContent ?? "";
    if (said === this.textContent) return; // an alert that is written again is spoken again
    this.replaceChildren(...(notice ? [notice] : []));
  }

  #notice({ state, error }) {
    if (state === "failed") {
      return this.#box("warn", t("This conversation could not be saved: %(reason)s", { reason: error?.message ?? "" }),
                       error?.hint || t("Nothing on this page is lost; it is tried again with the next change."),
                       [[t("Save now"), "retry"]]);
    }
    if (state === "conflict") {
      return this.#box("warn", t("This conversation was changed in another tab."),
                       t("This tab shows its own version, which is not saved."),
                       [[t("Show the other version"), "theirs"], [t("Keep mine"), "mine"]]);
    }
    if (state === "gone") {
      return this.#box("warn", t("This conversation was deleted somewhere else."), t("What you see here is no longer saved."),
                       [[t("Save it again"), "again"]]);
    }
    return null;
  }

  #box(kind, message, hint, choices) {
    return h(`div.notice.${kind}`, {}, h("div", {}, h("p", {}, message), h("p.hint.small", {}, hint)),
      ...choices.map(([text, how]) => h("button.button.tiny", { type: "button",
        onclick: () => this.dispatchEvent(new CustomEvent("chat-keep", { bubbles: true, detail: { how } })) }, text)));
  }
}

customElements.define("chat-notices", ChatNotices);
