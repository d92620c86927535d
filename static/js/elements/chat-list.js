// <chat-list>: the conversations that are kept, the one that was changed last first; on a phone behind a button.

import { get } from "../lib/api.js";
import { h, setText } from "../lib/dom.js";
import { t } from "../lib/i18n.js";
import { toastError } from "./toast-stack.js";

class ChatList extends HTMLElement {
  connectedCallback() {
    this.list = this.querySelector("ul");
    this.more = this.querySelector("[data-more]");
    this.more?.addEventListener("click", () => this.#older());
    const toggle = document.querySelector(`[aria-controls="${this.id}"]`);
    toggle?.addEventListener("click", () => {
      const opens = toggle.getAttribute("aria-expanded") !== "true";
      toggle.setAttribute("aria-expanded", String(opens));
      this.classList.toggle("is-open", opens);
    });
  }

  /** The open conversation has just been kept: it is the newest. */
  keep({ id, title }) {
    this.querySelector("[data-none]")?.remove();
    const item = this.#item(id) ?? this.#make({ id, title });
    const link = item.firstElementChild;
    setText(link, title || t("Untitled chat"));
    link.setAttribute("aria-current", "page");
    if (this.list.firstElementChild !== item) this.list.prepend(item);
  }

  /** It was deleted. */
  drop(id) {
    this.#item(id)?.remove();
  }

  #item(id) {
    return [...this.list.children].find((item) => item.dataset.id === id);
  }

  #make({ id, title }) {
    return h("li", { "data-id": id }, h("a", { href: `/chat/${id}` }, title || t("Untitled chat")));
  }

  async #older() {
    this.more.setAttribute("aria-busy", "true");
    try {
      const page = await get(`/conversations?cursor=${encodeURIComponent(this.dataset.cursor)}`);
      const fresh = page.items.filter(({ id }) => !this.#item(id)).map((item) => this.#make(item));
      this.list.append(...fresh);
      fresh[0]?.firstElementChild.focus();
      if (page.next_cursor) this.dataset.cursor = page.next_cursor;
      else this.more.remove();
    } catch (error) {
      toastError(error);
    } finally {
      this.more.removeAttribute("aria-busy");
    }
  }
}

customElements.define("chat-list", ChatList);
