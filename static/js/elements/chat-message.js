// <chat-message>: one turn. Its text, how it ended, and what can be done with it. Events: "chat-again" {isFresh},
// "chat-go-on", "chat-edit" {message, text}.

import "./copy-button.js";
import { splitThoughts } from "../lib/conversation.js";
import { h } from "../lib/dom.js";
import { integer } from "../lib/format.js";
import { t, tn } from "../lib/i18n.js";
import { markdown } from "../lib/markdown.js";

class ChatMessage extends HTMLElement {
  /**
   * @param {object} message see lib/conversation.js
   * @param {{plain: boolean, model: string, isLast: boolean, isLive: boolean, waiting: string, canGoOn: boolean,
   *          isReadOnly: boolean, later: number}} view
   */
  show(message, view) {
    Object.assign(this, { message, view });
    this.className = `message ${message.role}`;
    this.setAttribute("aria-busy", String(view.isLive));
    if (this.isEdited) return;
    const mine = message.role === "user";
    if (!this.said) {
      this.said = h("div.said");
      this.foot = h("div.message-foot");
      this.replaceChildren(h("h2.visually-hidden", {}, mine ? t("You") : t("Model")), this.said, this.foot);
    }
    this.#text();
    this.foot.replaceChildren(...(view.isLive ? [this.#progress()] : mine ? this.#mine() : this.#answer()));
  }

  #text() {
    const { message, view } = this;
    if (message.role === "user" || view.plain) {
      this.said.classList.add("as-is");
      if (this.said.textContent !== message.content) this.said.textContent = message.content;
      return;
    }
    const parts = splitThoughts(message.content);
    const old = [...this.said.children];
    parts.forEach((part, place) => {
      const tag = part.thought ? "DETAILS" : "DIV";
      let box = old[place];
      if (box?.nodeName !== tag) {
        const made = part.thought ? h("details.thoughts", {}, h("summary"), h("div")) : h("div.formatted");
        if (box) box.replaceWith(made);
        else this.said.append(made);
        box = made;
      }
      if (part.thought) box.firstChild.textContent = part.isOpen && view.isLive ? t("Thinking…") : t("Thoughts");
      const body = part.thought ? box.lastChild : box;
      if (body.source !== part.text) {
        body.replaceChildren(markdown(part.text));
        body.source = part.text;
      }
    });
    for (const extra of old.slice(parts.length)) extra.remove();
    if (!parts.length && !view.isLive) this.said.append(h("p.muted", {}, t("The model said nothing.")));
  }

  #progress() {
    return h("span.small.muted.chat-waiting", {}, this.view.waiting);
  }

  #mine() {
    if (this.view.isReadOnly) return [];
    return [this.#button(t("Edit"), t("Edit this message"), () => this.#edit())];
  }

  #answer() {
    const { message, view } = this;
    const copy = h("copy-button", { "data-text": message.content },
      h("button.button.quiet.tiny", { type: "button", "aria-label": t("Copy this answer") }, t("Copy")));
    const actions = message.content ? [copy] : [];
    if (view.isLast && !view.isReadOnly) {
      actions.push(this.#button(t("Answer again"), null, () => this.#tell("chat-again", { isFresh: true })));
      if (view.canGoOn) actions.push(this.#button(t("Go on"), null, () => this.#tell("chat-go-on")));
    }
    return [h("span.small.muted.number", {}, this.#facts().join(" · ")), h("span.message-actions", {}, ...actions)];
  }

  #facts() {
    const { message, view } = this;
    const facts = view.model ? [view.model] : [];
    if (message.usage) facts.push(tn("%(num)s token", "%(num)s tokens", message.usage.completion_tokens));
    if (message.tokensPerSecond) facts.push(t("%(number)s tokens/s", { number: integer(message.tokensPerSecond) }));
    const endings = { cancelled: t("stopped"), length: t("cut off at its longest length"), error: t("broke off") };
    if (message.finish_reason in endings) facts.push(endings[message.finish_reason]);
    else if (!message.finish_reason) facts.push(t("interrupted: the page was left before it ended"));
    return facts;
  }

  #edit() {
    this.isEdited = true;
    const { message, view } = this;
    const field = h("textarea", { "aria-label": t("Edit this message"), maxlength: "100000", rows: "3" });
    field.value = message.content;
    const close = () => {
      this.isEdited = false;
      this.said = null;
      this.show(this.message, this.view);
      this.querySelector("button")?.focus();
    };
    const send = () => {
      if (!field.value.trim() || this.view.isReadOnly) return; // an answer is coming: first stop it
      this.isEdited = false;
      this.said = null;
      this.#tell("chat-edit", { message, text: field.value });
    };
    field.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return;
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        send();
      } else if (event.key === "Escape") {
        event.stopPropagation();
        close();
      }
    });
    this.replaceChildren(h("h2.visually-hidden", {}, t("You")), h("form.edit-message", {
      onsubmit: (event) => {
        event.preventDefault();
        send();
      },
    }, field, view.later ? h("p.small.muted", {}, tn("The %(num)s message after this one will be removed.",
                                                     "The %(num)s messages after this one will be removed.", view.later)) : null,
    h("div.row", {}, h("button.button.primary.tiny", { type: "submit" }, t("Send again")),
      h("button.button.quiet.tiny", { type: "button", onclick: close }, t("Cancel")))));
    field.focus();
  }

  #button(text, label, work) {
    return h("button.button.quiet.tiny", { type: "button", "aria-label": label, onclick: work }, text);
  }

  #tell(name, detail = {}) {
    this.dispatchEvent(new CustomEvent(name, { bubbles: true, detail }));
  }
}

customElements.define("chat-message", ChatMessage);
