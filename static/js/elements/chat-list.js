// <chat-list>: the conversations that are kept, the one that was changed last first; on a phone behind a button.

import { get } from "../lib/api.js";
import { debounced, h, isComposing, setText } from "../lib/dom.js";
import { t, tn } from "../lib/i18n.js";
import { toastError } from "./toast-stack.js";

const SEARCH_PAUSE_MS = 250;

class ChatList extends HTMLElement {
  connectedCallback() {
    this.list = this.querySelector("ul");
    this.more = this.querySelector("[data-more]");
    this.field = this.querySelector("[data-search]");
    const soon = debounced(() => this.#search(), SEARCH_PAUSE_MS);
    this.field.addEventListener("input", (event) => event.isComposing || soon());
    this.field.addEventListener("compositionend", soon);
    this.field.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown" && !isComposing(event)) this.list.querySelector("a")?.focus();
    });
    this.more?.addEventListener("click", () => this.#older());
    this.toggle = document.querySelector(`[aria-controls="${this.id}"]`);
    this.toggle?.addEventListener("click", () => {
      const opens = this.toggle.getAttribute("aria-expanded") !== "true";
      this.toggle.setAttribute("aria-expanded", String(opens));
      this.classList.toggle("is-open", opens);
    });
  }

  /** To the search, also where the list is folded away. */
  takeFocus() {
    if (!this.checkVisibility()) this.toggle?.click();
    this.field.select();
  }

  /** The open conversation has just been kept: it is the newest. */
  keep({ id, title }) {
    if (this.kept) return; // what was searched for is shown
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

  #make({ id, title, excerpt }) {
    return h("li", { "data-id": id }, h("a", { href: `/chat/${id}` }, title || t("Untitled chat"),
      excerpt ? h("span.chat-excerpt.small", {}, excerpt) : null));
  }

  /** What was found in place of the list; an empty field brings the list back. */
  async #search() {
    const q = this.field.value.trim();
    this.controller?.abort();
    const { signal } = (this.controller = new AbortController());
    const found = this.querySelector("[data-found]");
    if (!q) {
      if (this.kept) this.list.replaceChildren(...this.kept);
      this.kept = null;
      setText(found, "");
    } else {
      try {
        const { items } = await get(`/conversations?limit=100&q=${encodeURIComponent(q)}`, { signal });
        this.kept ??= [...this.list.children];
        this.list.replaceChildren(...items.map((item) => this.#make(item)));
        if (!items.length) this.list.append(h("li.small.muted", {}, t("Nothing was found.")));
        setText(found, tn("%(num)s chat found", "%(num)s chats found", items.length));
      } catch (error) {
        toastError(error);
      }
    }
    if (this.more) this.more.hidden = this.kept !== null && this.kept !== undefined;
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
