// <chat-page data-view>: a conversation with a checkpoint. Its parts show and ask; what was said, who answers and what
// is kept is decided here.

import "./chat-composer.js";
import "./chat-import.js";
import "./chat-list.js";
import "./chat-notices.js";
import "./chat-settings.js";
import "./chat-thread.js";
import { bindDialogs } from "./chat-dialogs.js";
import { bindKeys } from "./chat-keys.js";
import { ChatTalk } from "./chat-talk.js";
import { server, stayTruthful } from "./chat-truth.js";
import { newKey } from "../lib/api.js";
import { Answering } from "../lib/answering.js";
import { Keeper, plainMessage, speakable } from "../lib/conversation.js";
import { dataOf, setText } from "../lib/dom.js";
import { keepDraft, loadDraft, markLive, wasLive } from "../lib/drafts.js";
import { t } from "../lib/i18n.js";
import { TalkTree } from "../lib/talk-tree.js";

const SEEMS_TO_LOAD_MS = 1500;
const isTouched = () => matchMedia("(pointer: coarse)").matches; // there a field with the focus opens the keyboard

class ChatPage extends ChatTalk {
  connectedCallback() {
    const view = dataOf(this, "view");
    this.checkpoints = new Map(view.checkpoints.map((checkpoint) => [checkpoint.id, checkpoint]));
    Object.assign(this, { thread: this.querySelector("chat-thread"), composer: this.querySelector("chat-composer"),
                          settings: this.querySelector("chat-settings"), notices: this.querySelector("chat-notices"),
                          user: view.user_id, failed: null, talk: view.conversation });
    this.settings.fill(this.talk?.sampling ?? {}, this.talk?.system ?? "");
    this.tree = new TalkTree(view.conversation?.messages, view.conversation?.head);
    this.answering = new Answering(this);
    this.keeper = new Keeper({
      id: this.talk?.id, version: this.talk?.version, known: this.talk, server, newKey, body: () => this.body(),
      onState: () => this.thread.holdEnd(() => this.notices?.show(this.keeper)), onKept: (kept) => this.#kept(kept),
    });
    bindDialogs(this, { title: () => this.talk?.title ?? "", rename: (title) => this.keeper.rename(title),
                        remove: () => this.#delete() });
    bindKeys(this, { stop: () => this.answering.stop(), write: () => this.composer?.field.focus() });
    this.bindFiles();
    this.addEventListener("chat-keep", (event) => this.#keep(event.detail.how));
    stayTruthful(this.keeper, { isBusy: () => this.#isAtWork, show: (theirs) => this.#showVersion(theirs), seen: () => this.#goOnAfterReload() });
    for (const name of ["pagehide", "pageshow"]) window.addEventListener(name, () => (this.isLeft = name === "pagehide"));
    if (this.composer) this.#start();
    this.#show();
    if (this.tree.head) this.thread.toEnd();
  }

  #start() {
    this.composer.checkpoints = this.checkpoints;
    this.composer.mode = this.#wantedMode();
    this.greet();
    const on = (name, work) => this.addEventListener(name, (event) => work(event.detail));
    on("chat-send", ({ text }) => this.answering.isBusy || this.#say(text));
    on("chat-stop", () => this.answering.stop());
    on("chat-again", ({ message }) => this.#again(message));
    on("chat-go-on", () => this.#answer({ message: this.tree.last }));
    on("chat-edit", ({ message, text }) => this.#say(text, message.parent_id ?? null));
    on("chat-branch", ({ message, what }) => this.#branch(message, what));
    on("chat-draft", ({ text }) => keepDraft(this.user, this.keeper.id, text));
    on("chat-choice", ({ what }) => this.#choose(what));
    on("chat-settings", () => this.#changed());
    this.composer.begin({ hasFocus: !isTouched() });
    const draft = loadDraft(this.user, this.keeper.id);
    if (draft !== this.tree.path.findLast(({ role }) => role === "user")?.content) this.composer.draft = draft; // else it was sent
  }

  /** Another tab's version would take away what is being written. */
  get #isAtWork() {
    return this.answering.isBusy || this.querySelector(".edit-message, dialog[open]") !== null;
  }

  #wantedMode() {
    const asked = new URLSearchParams(location.search).get("mode");
    if (asked === "chat" || asked === "text") return asked;
    return this.talk?.mode ?? (this.composer.continuesText ? "text" : "chat");
  }

  #show() {
    const { answering, tree } = this;
    const continues = (message) => !message.adapter_checkpoint_id && (this.checkpoints.get(message.checkpoint_id)?.continues_text ?? false);
    const canGoOn = (message) => message.role === "assistant" && !message.tool_calls?.length
      && (this.composer?.mode === "text" || message.finish_reason !== "stop");
    this.thread.show(tree.path, {
      live: answering.live, isRunning: answering.isRunning, isBusy: answering.isBusy, waiting: this.waiting ?? "",
      isReadOnly: !this.composer, plain: continues, canGoOn, siblings: (message) => tree.siblings(message),
      model: (message) => this.named(message.checkpoint_id, message.adapter_checkpoint_id),
    });
  }

  /** Say `text` behind the message `parent`: behind an earlier one it begins a branch. */
  #say(text, parent = this.tree.head) {
    if (this.answering.isBusy) return;
    this.failed = null;
    this.tree.add({ role: "user", content: speakable(text), created_at: new Date().toISOString() }, parent);
    keepDraft(this.user, this.keeper.id, "");
    this.keeper.now();
    this.#answer({ scroll: true });
  }

  /** Another answer in place of `message`, in a branch of its own; null: what failed, or what is missing, once more. */
  #again(message = null) {
    const { last } = this.tree;
    if (this.answering.isBusy) return;
    if (!message && this.failed && this.failed === last) {
      this.#answer({ message: last });
      return;
    }
    const asking = this.tree.pathTo(message?.id ?? last?.id).findLast(({ role }) => role === "user");
    if ((message ?? last)?.role === "assistant" && asking) this.tree.show(asking.id); // with its tools, from the start
    this.#answer({ previous: last });
  }

  /** Ask for the next answer, or for more of `message`. `previous` is shown again where none arrives. */
  async #answer({ previous = null, message = null, scroll = false }) {
    if (this.answering.isBusy) return;
    const { tree, tree: { head: from } } = this;
    const asked = this.answering.answer(message);
    this.#begin(scroll);
    const error = await asked;
    clearTimeout(this.loading);
    if (this.isLeft) return; // after a reload it is gone on with: it did not end here
    markLive(this.user, null);
    this.composer.isBusy = false;
    if (this.tree !== tree) return; // the other tab's version is shown by now
    if (previous && tree.head === from && tree.get(previous.id)) tree.show(previous.id);
    this.failed = error && message;
    if (error) this.thread.fail(error);
    this.#show();
    this.keeper.now();
    this.thread.speak(this.querySelector("[data-spoken]"), error ? null : tree.last);
  }

  #begin(scroll) {
    this.thread.fail(null);
    this.composer.isBusy = true;
    if (document.activeElement === document.body && !isTouched()) this.composer.stop.focus(); // its button went away
    this.#show();
    if (scroll) this.thread.toEnd();
  }

  began(answer) {
    markLive(this.user, answer.id);
    this.waiting = t("Reading your message…");
    clearTimeout(this.loading);
    this.loading = setTimeout(() => this.thread.wait(t("Waiting for the model. It may have to be loaded first…")), SEEMS_TO_LOAD_MS);
    this.#show();
  }

  heard(part) {
    if (part.open) {
      clearTimeout(this.loading);
      this.thread.wait(t("Thinking…"));
    } else if (part.text || part.reasoning || part.tool_calls) {
      this.thread.state.waiting = part.text ? t("Writing…") : t("Thinking…");
      this.thread.grow();
      this.keeper.soon();
    }
  }

  changed() {
    if (this.isLeft) return;
    this.#show();
    this.keeper.soon();
  }

  /** The answer that this tab was hearing when it was reloaded is gone on with. */
  #goOnAfterReload() {
    const { last } = this.tree;
    if (!this.composer || this.answering.isBusy || !last || last.finish_reason) return;
    if (last.role !== "assistant" || last.tool_calls?.length || !wasLive(this.user, last.id)) return;
    this.#answer({ message: last });
  }

  #branch(message, what) {
    if (this.answering.isBusy) return;
    if (what === "fork") return void this.fork(message);
    if (what === "prune") this.tree.prune(message);
    else this.tree.turn(message, what);
    this.failed = null;
    this.thread.fail(null);
    this.#show();
    this.keeper.soon();
  }

  #choose(what) {
    if (what !== "mode") this.composer.mode = this.composer.continuesText ? "text" : "chat";
    this.composer.warn();
    const url = new URL(location.href);
    const isDefault = (this.composer.mode === "text") === this.composer.continuesText;
    if (isDefault || this.keeper.id) url.searchParams.delete("mode"); // a kept conversation knows it
    else url.searchParams.set("mode", this.composer.mode);
    url.searchParams.delete("adapter");
    for (const [name, id] of Object.entries(this.keeper.id ? {} : this.composer.who)) url.searchParams.set(name, id);
    history.replaceState(history.state, "", url);
    this.greet();
    this.#show();
    this.#changed();
  }

  #changed() {
    if (this.tree.head) this.keeper.soon();
  }

  #kept(kept) {
    this.talk = kept;
    setText(this.querySelector("h1"), kept.title || t("Untitled chat"));
    document.title = `${kept.title || t("Untitled chat")} · MiniMind Studio`;
    this.querySelector("[data-kept-only]").hidden = false;
    this.querySelector("chat-list").keep(kept);
    if (location.pathname !== `/chat/${kept.id}`) {
      keepDraft(this.user, null, "");
      keepDraft(this.user, kept.id, this.composer?.field.value ?? "");
      history.replaceState(history.state, "", `/chat/${kept.id}`);
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
    this.answering.stop();
    this.failed = null;
    this.tree = new TalkTree(theirs.messages, theirs.head);
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
    this.answering.stop();
    location.assign("/chat");
  }
}

customElements.define("chat-page", ChatPage);
