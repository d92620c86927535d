// <chat-message>: one turn. Its thoughts, its text or its tokens, its calls of tools, how it ended, and what can be done
// with it. Events: "chat-again" {message}, "chat-go-on", "chat-edit" {message, text}, "chat-tokens" {wanted}: from now on
// answers are asked for with their tokens, or without (wantsTokens() and tokenOptions() of lib/token-chances.js say so).

import "./copy-button.js";
import "./formatted-text.js";
import "./token-view.js";
import "./tool-call.js";
import { h, setText } from "../lib/dom.js";
import { t } from "../lib/i18n.js";
import { facts, partsOf, thoughtWords, timeThoughts } from "../lib/message-facts.js";
import { setWantsTokens, wantsTokens } from "../lib/token-chances.js";
import { editForm } from "./message-edit.js";

const NAMES = { user: () => t("You"), assistant: () => t("Model"), tool: () => t("Tool") };

class ChatMessage extends HTMLElement {
  /**
   * @param {object} message {role, content, reasoning, tool_calls: [{id, name, arguments}], tokens, usage, speed,
   *   finish_reason}; of a tool {role: "tool", name, content, is_error}
   * @param {{plain: boolean, model: string, isLast: boolean, isLive: boolean, waiting: string, canGoOn: boolean,
   *   canAsk: boolean, isReadOnly: boolean, later: number, results: object[], isRunning: boolean, extra: Element[]}} view
   *   `canAsk`: another answer can be asked for in its place;
   *   may leave out: `results`, the messages of tools that answer the calls (resultsOf() of lib/message-facts.js finds
   *   them), shown beneath them instead of for themselves; `isRunning`, the tools are at work; `extra`, what else stands
   *   among the actions.
   */
  show(message, view) {
    if (this.message !== message) this.showsTokens = null; // as the reader wishes for all
    Object.assign(this, { message, view });
    this.className = `message ${message.role}`;
    this.setAttribute("aria-busy", String(view.isLive));
    if (this.isEdited) return;
    if (!this.said) {
      this.said = h("div.said");
      this.calls = h("div.tool-calls");
      this.foot = h("div.message-foot");
      this.replaceChildren(h("h2.visually-hidden", {}, NAMES[message.role]?.() ?? message.role), this.said, this.calls, this.foot);
    }
    timeThoughts(message, view.isLive);
    const asTokens = this.#isAsTokens();
    this.said.hidden = asTokens && Boolean(message.tokens?.length);
    if (!this.said.hidden || !view.isLive) this.#text(); // also unseen: what has been said is read out from there
    this.#tokens(asTokens);
    this.#calls();
    this.#foot();
  }

  #text() {
    const { message, view } = this;
    if (message.role === "tool") return;
    if (message.role === "user" || view.plain) {
      this.said.classList.add("as-is");
      setText(this.said, message.content);
      return;
    }
    const parts = partsOf(message, view.isLive);
    const old = [...this.said.children];
    parts.forEach((part, place) => {
      const tag = part.thought ? "DETAILS" : "FORMATTED-TEXT";
      let box = old[place];
      if (box?.nodeName !== tag) {
        const made = part.thought ? h("details.thoughts", {}, h("summary"), h("formatted-text")) : h("formatted-text.formatted");
        if (box) box.replaceWith(made);
        else this.said.append(made);
        box = made;
      }
      if (part.thought) setText(box.firstChild, thoughtWords(part, message, view.isLive));
      (part.thought ? box.lastChild : box).show(part.text, view.isLive);
    });
    for (const extra of old.slice(parts.length)) extra.remove();
    if (!parts.length && !view.isLive && !message.tool_calls?.length) {
      this.said.append(h("p.muted", {}, t("The model said nothing.")));
    }
  }

  /** The answer as tokens, or where it has none, how to come by them. */
  #tokens(isShown) {
    const { message } = this;
    if (!isShown) {
      this.tokens?.remove();
      this.tokens = null;
      return;
    }
    const hasTokens = Boolean(message.tokens?.length);
    if (this.tokens?.hasTokens !== hasTokens) {
      const always = h("input", { type: "checkbox", onchange: () => this.#always(always.checked) });
      const label = h("label.row.small", {}, always, t("Show every answer as tokens"));
      const body = hasTokens ? h("token-view") : h("p.small.muted", {}, this.view.isLast
        ? t("The tokens of this answer are not kept. Let it answer again to see its tokens.")
        : t("The tokens of this answer are not kept. The next answers come with theirs."));
      const made = h("div.message-tokens", {}, body, label);
      Object.assign(made, { hasTokens, body, always });
      if (this.tokens) this.tokens.replaceWith(made);
      else this.said.after(made);
      this.tokens = made;
    }
    this.tokens.always.checked = wantsTokens();
    if (hasTokens) this.tokens.body.show(message.tokens);
  }

  #calls() {
    const { message, view } = this;
    const calls = message.role === "tool" ? [{ name: message.name }] : message.tool_calls ?? [];
    const resultOf = (call) => (message.role === "tool" ? message
      : view.results?.find(({ tool_call_id: id }) => id === call.id) ?? null);
    while (this.calls.children.length > calls.length) this.calls.lastChild.remove();
    calls.forEach((call, place) => {
      const box = this.calls.children[place] ?? this.calls.appendChild(document.createElement("tool-call"));
      box.show(call, resultOf(call), view.isLive || view.isRunning === true);
    });
  }

  #foot() {
    const { message, view } = this;
    this.foot.hidden = message.role === "tool" && !view.extra?.length;
    if (view.isLive) {
      this.foot.replaceChildren(h("span.small.muted.chat-waiting", {}, view.waiting));
      return;
    }
    const isAnswer = message.role === "assistant";
    const actions = isAnswer ? this.#answerActions() : this.#ownActions();
    const focused = this.foot.contains(document.activeElement) ? document.activeElement.dataset.action : null;
    this.foot.replaceChildren(...(isAnswer ? [h("span.small.muted.number", {}, facts(message, view.model).join(" · "))] : []),
                              h("span.message-actions", {}, ...(view.extra ?? []), ...actions));
    if (focused) this.foot.querySelector(`[data-action="${focused}"]`)?.focus();
  }

  #ownActions() {
    if (this.view.isReadOnly || this.message.role !== "user") return [];
    return [this.#button("edit", t("Edit"), t("Edit this message"), () => this.#edit())];
  }

  #answerActions() {
    const { message, view } = this;
    const actions = [];
    if (message.content) {
      actions.push(h("copy-button", { "data-text": message.content },
        h("button.button.quiet.tiny", { type: "button", "aria-label": t("Copy this answer") }, t("Copy"))));
    }
    const tokens = this.#button("tokens", t("Tokens"), t("Show this answer as tokens"), () => this.#turnTokens());
    tokens.setAttribute("aria-pressed", String(this.#isAsTokens()));
    actions.push(tokens);
    if (view.isReadOnly) return actions;
    if (view.canAsk) actions.push(this.#button("again", t("Answer again"), null, () => this.#tell("chat-again", { message })));
    if (view.canGoOn) actions.push(this.#button("go-on", t("Go on"), null, () => this.#tell("chat-go-on")));
    return actions;
  }

  #isAsTokens() {
    if (this.message.role !== "assistant") return false;
    return this.showsTokens ?? (wantsTokens() && Boolean(this.message.tokens?.length));
  }

  #turnTokens() {
    this.showsTokens = !this.#isAsTokens();
    if (this.showsTokens && !this.message.tokens?.length) this.#always(true); // else there would never be any
    const show = () => this.show(this.message, this.view);
    const thread = this.closest("chat-thread");
    if (thread) thread.holdEnd(show);
    else show();
  }

  #always(is) {
    setWantsTokens(is);
    this.#tell("chat-tokens", { wanted: is });
  }

  #edit() {
    this.isEdited = true;
    const { message, view } = this;
    const end = () => {
      this.isEdited = false;
      this.said = null;
    };
    const close = () => {
      end();
      this.show(this.message, this.view);
      this.querySelector("button")?.focus();
    };
    const send = (text) => {
      if (this.view.isReadOnly) return; // an answer is coming: first stop it
      end();
      this.#tell("chat-edit", { message, text });
    };
    const { form, focus } = editForm(message.content, view.later, { send, close });
    this.replaceChildren(h("h2.visually-hidden", {}, t("You")), form);
    focus();
  }

  #button(action, text, label, work) {
    return h("button.button.quiet.tiny", { type: "button", "aria-label": label, "data-action": action, onclick: work }, text);
  }

  #tell(name, detail = {}) {
    this.dispatchEvent(new CustomEvent(name, { bubbles: true, detail }));
  }
}

customElements.define("chat-message", ChatMessage);
