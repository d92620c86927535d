// <chat-page data-view>: a conversation with a checkpoint. Its parts show and ask; what was said, who answers and what
// is kept is decided here.

import "./chat-composer.js";
import "./chat-list.js";
import "./chat-notices.js";
import "./chat-settings.js";
import "./chat-thread.js";
import { bindDialogs } from "./chat-dialogs.js";
import { server, stayTruthful } from "./chat-truth.js";
import { get, newKey } from "../lib/api.js";
import { chatRequest, Keeper, modelId, plainMessage, receive, speakable, suggestions, textRequest } from "../lib/conversation.js";
import { dataOf, setText } from "../lib/dom.js";
import { integer } from "../lib/format.js";
import { t } from "../lib/i18n.js";
import { completion } from "../lib/sse.js";

const SEEMS_TO_LOAD_MS = 1500;
const isTouched = () => matchMedia("(pointer: coarse)").matches; // there a field with the focus opens the keyboard

class ChatPage extends HTMLElement {
  connectedCallback() {
    const view = dataOf(this, "view");
    this.checkpoints = new Map(view.checkpoints.map((checkpoint) => [checkpoint.id, checkpoint]));
    Object.assign(this, { thread: this.querySelector("chat-thread"), composer: this.querySelector("chat-composer"),
                          settings: this.querySelector("chat-settings"), notices: this.querySelector("chat-notices"),
                          live: null, failed: null, talk: view.conversation });
    this.settings.fill(this.talk?.sampling ?? {}, this.talk?.system ?? "");
    this.messages = view.conversation?.messages ?? [];
    this.keeper = new Keeper({
      id: this.talk?.id, version: this.talk?.version, known: this.talk, server, newKey, body: () => this.#body(),
      onState: () => this.thread.holdEnd(() => this.notices?.show(this.keeper)), onKept: (kept) => this.#kept(kept),
    });
    bindDialogs(this, { title: () => this.talk?.title ?? "", rename: (title) => this.keeper.rename(title),
                        remove: () => this.#delete() });
    this.addEventListener("chat-keep", (event) => this.#keep(event.detail.how));
    stayTruthful(this.keeper, { isBusy: () => this.#isAtWork, show: (theirs) => this.#showVersion(theirs) });
    if (this.composer) this.#start();
    this.#show();
    if (this.messages.length) this.thread.toEnd();
  }

  #start() {
    this.composer.checkpoints = this.checkpoints;
    this.composer.mode = this.#wantedMode();
    this.#greet();
    const on = (name, work) => this.addEventListener(name, (event) => work(event.detail));
    on("chat-send", ({ text }) => this.live || this.#say(text));
    on("chat-stop", () => this.controller?.abort());
    on("chat-again", ({ isFresh }) => this.#again(isFresh));
    on("chat-go-on", () => this.#answer({ message: this.messages.at(-1) }));
    on("chat-edit", ({ message, text }) => this.#edit(message, text));
    on("chat-choice", ({ what }) => this.#choose(what));
    on("chat-settings", () => this.#changed());
    document.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return; // it takes back a word of an input method
      if (event.key === "Escape" && this.live && !document.querySelector("dialog[open]")) this.controller?.abort();
    });
    this.composer.begin({ hasFocus: !isTouched() });
  }

  /** Another tab's version would take away what is being written. */
  get #isAtWork() {
    return this.live !== null || this.querySelector(".edit-message, dialog[open]") !== null;
  }

  #wantedMode() {
    const asked = new URLSearchParams(location.search).get("mode");
    if (asked === "chat" || asked === "text") return asked;
    return this.composer.continuesText ? "text" : "chat";
  }

  /** Everything that is kept; the checkpoint that was chosen, also where it is gone and nobody chose another. */
  #body() {
    const from = this.composer ? { checkpoint_id: this.composer.model, adapter_checkpoint_id: this.composer.adapter } : this.talk;
    return { checkpoint_id: from?.checkpoint_id ?? null, adapter_checkpoint_id: from?.adapter_checkpoint_id ?? null,
             system: speakable(this.settings.system), sampling: this.settings.sampling, messages: this.messages.filter((m) => m.content || m !== this.live).map(plainMessage) };
  }

  #show() {
    const { messages, live } = this;
    const continues = (message) => !message.adapter_checkpoint_id && (this.checkpoints.get(message.checkpoint_id)?.continues_text ?? false);
    this.thread.show(messages, {
      live, waiting: this.waiting ?? "", isReadOnly: !this.composer, plain: continues,
      canGoOn: this.composer?.mode === "text" && messages.at(-1)?.role === "assistant",
      model: (message) => this.#named(message.checkpoint_id, message.adapter_checkpoint_id),
    });
  }

  #named(...ids) {
    return ids.map((id) => this.checkpoints.get(id)).filter(Boolean).map(({ run_name, step }) =>
      t("%(name)s, step %(step)s", { name: run_name, step: integer(step) })).join(" + ");
  }

  async #greet() {
    const { composer } = this;
    const { speaker } = composer;
    const text = composer.mode === "text" ? t("Begin a text, and it goes on from your last word.")
      : composer.continuesText ? t("It has only read texts. Try it as it is, or let it continue one.")
      : t("Ask it something. It has read very little, so keep it simple.");
    this.querySelector("[data-new-chat]").href = `/chat?${new URLSearchParams(composer.who)}`;
    this.prompts ??= new Map();
    this.thread.greet(this.#named(composer.model, composer.adapter), text, this.prompts.get(speaker.run_id) ?? []);
    if (this.messages.length || this.prompts.has(speaker.run_id)) return;
    try {
      this.prompts.set(speaker.run_id, suggestions((await get(`/runs/${speaker.run_id}/samples`)).items));
    } catch {
      this.prompts.set(speaker.run_id, []); // a page without suggestions is whole
    }
    if (composer.speaker === speaker) this.#greet();
  }

  #say(text) {
    this.failed = null;
    this.messages.push({ role: "user", content: speakable(text), created_at: new Date().toISOString() });
    this.keeper.now();
    this.#answer({ scroll: true });
  }

  #edit(message, text) {
    this.messages.splice(this.messages.indexOf(message));
    this.#say(text);
  }

  #again(isFresh) {
    if (this.live) return;
    if (!isFresh && this.failed && this.failed === this.messages.at(-1)) {
      this.#answer({ message: this.failed });
      return;
    }
    const previous = this.messages.at(-1)?.role === "assistant" ? this.messages.pop() : null;
    this.#answer({ previous });
  }

  /**
   * Ask for the next answer, or for more of `message`. `previous` is the answer that this one replaces: it comes back
   * where none arrives.
   */
  async #answer({ previous = null, message = null, scroll = false }) {
    if (this.live) return;
    const { model, adapter } = this.composer;
    const mode = message ? "text" : this.composer.mode; // only a text is gone on with
    const asked = { model: modelId(model, adapter), system: this.settings.system, sampling: this.settings.sampling, messages: [...this.messages] };
    const [path, body] = mode === "text" ? ["/v1/completions", textRequest(asked)]
      : ["/v1/chat/completions", chatRequest(asked)];
    const before = message && { ...message };
    if (!message) this.messages.push({ role: "assistant", content: "", checkpoint_id: model, adapter_checkpoint_id: adapter, created_at: new Date().toISOString() });
    const answer = (this.live = message ?? this.messages.at(-1));
    answer.finish_reason = null;
    this.controller = new AbortController();
    this.#begin(scroll);
    const error = await receive(answer, completion(path, body, { signal: this.controller.signal }), (part) => this.#hear(part));
    clearTimeout(this.loading);
    this.live = this.controller = null;
    this.composer.isBusy = false;
    if (!this.messages.includes(answer)) return; // the other tab's version is shown by now
    if (["cancelled", "error"].includes(answer.finish_reason)) {
      if (before && answer.content === before.content) Object.assign(answer, before);
      else if (!answer.content) this.messages.splice(this.messages.indexOf(answer), 1, ...(previous ? [previous] : []));
    }
    this.failed = error && message;
    if (error) this.thread.fail(error);
    this.#show();
    this.keeper.now();
    this.thread.speak(this.querySelector("[data-spoken]"), error ? null : answer);
  }

  #begin(scroll) {
    this.thread.fail(null);
    this.composer.isBusy = true;
    this.waiting = t("Reading your message…");
    this.loading = setTimeout(() => this.thread.wait(t("Waiting for the model. It may have to be loaded first…")), SEEMS_TO_LOAD_MS);
    this.#show();
    if (document.activeElement === document.body && !isTouched()) this.composer.stop.focus(); // its button went away
    if (scroll) this.thread.toEnd();
  }

  #hear(part) {
    if (part.open) {
      clearTimeout(this.loading);
      this.thread.wait(t("Thinking…"));
    } else if (part.text) {
      this.thread.state.waiting = t("Writing…");
      this.thread.grow();
      this.keeper.soon();
    }
  }

  #choose(what) {
    if (what !== "mode") this.composer.mode = this.composer.continuesText ? "text" : "chat";
    this.composer.warn();
    const url = new URL(location.href);
    const isDefault = (this.composer.mode === "text") === this.composer.continuesText;
    if (isDefault) url.searchParams.delete("mode");
    else url.searchParams.set("mode", this.composer.mode);
    url.searchParams.delete("adapter");
    for (const [name, id] of Object.entries(this.keeper.id ? {} : this.composer.who)) url.searchParams.set(name, id);
    history.replaceState(history.state, "", url);
    this.#greet();
    this.#show();
    if (what !== "mode") this.#changed();
  }

  #changed() {
    if (this.messages.length) this.keeper.soon();
  }

  #kept(kept) {
    this.talk = kept;
    setText(this.querySelector("h1"), kept.title || t("Untitled chat"));
    document.title = `${kept.title || t("Untitled chat")} · MiniMind Studio`;
    this.querySelector("[data-kept-only]").hidden = false;
    this.querySelector("chat-list").keep(kept);
    if (location.pathname !== `/chat/${kept.id}`) {
      const mode = new URLSearchParams(location.search).get("mode");
      history.replaceState(history.state, "", `/chat/${kept.id}${mode ? `?mode=${mode}` : ""}`);
    }
  }

  #keep(how) {
    if (how === "retry") this.keeper.retry();
    else if (how === "mine") this.keeper.keepMine();
    else if (how === "again") {
      this.querySelector("chat-list").drop(this.talk.id);
      this.keeper.keepAgain(this.talk.title);
    } else this.#showVersion(this.keeper.takeTheirs());
  }

  /** Another tab's version in place of this one's. */
  #showVersion(theirs) {
    this.controller?.abort();
    this.live = this.failed = null;
    this.messages = theirs.messages;
    this.thread.fail(null);
    this.composer?.choose(theirs.checkpoint_id, theirs.adapter_checkpoint_id);
    this.composer?.warn();
    this.settings.fill(theirs.sampling, theirs.system);
    this.#kept(theirs);
    this.#show();
  }

  async #delete() {
    await server.remove(this.keeper.id);
    this.keeper.end();
    this.controller?.abort();
    location.assign("/chat");
  }
}

customElements.define("chat-page", ChatPage);
