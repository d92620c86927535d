// What <chat-page> knows of the conversation: who answers, what is kept and exported, what to begin with.

import { get, newKey, post } from "../lib/api.js";
import { modelId, plainMessage, speakable, suggestions } from "../lib/conversation.js";
import { saveAs } from "../lib/dom.js";
import { bytes, integer } from "../lib/format.js";
import { t } from "../lib/i18n.js";
import { asJson, asMarkdown, fileName } from "../lib/talk-export.js";
import { MOST_BYTES, readTalk } from "../lib/talk-import.js";
import "./copy-button.js";
import { toastError } from "./toast-stack.js";

/** Whoever extends it has checkpoints, composer, settings, thread, tree, talk and answering. */
export class ChatTalk extends HTMLElement {
  /** What Answering asks with. */
  get who() {
    return { model: this.composer.model, adapter: this.composer.adapter, mode: this.composer.mode };
  }

  get system() {
    return this.settings.system;
  }

  get sampling() {
    return this.settings.sampling;
  }

  /** Everything that is kept; the checkpoint that was chosen, also where it is gone and nobody chose another. */
  body() {
    const from = this.composer ? { checkpoint_id: this.composer.model, adapter_checkpoint_id: this.composer.adapter } : this.talk;
    const { live } = this.answering;
    const hides = live !== null && !live.content && !live.reasoning && !live.tool_calls; // nothing of it has come yet
    const messages = this.tree.messages.filter((message) => !(hides && message === live)).map(plainMessage);
    return { checkpoint_id: from?.checkpoint_id ?? null, adapter_checkpoint_id: from?.adapter_checkpoint_id ?? null,
             system: speakable(this.settings.system), sampling: this.settings.sampling, messages,
             head: (hides && this.tree.head === live.id ? live.parent_id : this.tree.head) ?? null,
             mode: this.composer?.mode ?? this.talk?.mode ?? null };
  }

  named(...ids) {
    return ids.map((id) => this.checkpoints.get(id)).filter(Boolean).map(({ run_name, step }) =>
      t("%(name)s, step %(step)s", { name: run_name, step: integer(step) })).join(" + ");
  }

  async greet() {
    const { composer } = this;
    const { speaker } = composer;
    const text = composer.mode === "text" ? t("Begin a text, and it goes on from your last word.")
      : composer.continuesText ? t("It has only read texts. Try it as it is, or let it continue one.")
      : t("Ask it something. It has read very little, so keep it simple.");
    this.querySelector("[data-new-chat]").href = `/chat?${new URLSearchParams(composer.who)}`;
    this.querySelector("[data-way=compare]").href = `/chat/compare?${new URLSearchParams(composer.who)}`;
    this.querySelector("[data-way=travel]").href = `/chat/travel?${new URLSearchParams({ run: speaker.run_id })}`;
    this.prompts ??= new Map();
    this.thread.greet(this.named(composer.model, composer.adapter), text, this.prompts.get(speaker.run_id) ?? []);
    if (this.tree.head || this.prompts.has(speaker.run_id)) return;
    try {
      this.prompts.set(speaker.run_id, suggestions((await get(`/runs/${speaker.run_id}/samples`)).items));
    } catch {
      this.prompts.set(speaker.run_id, []); // a page without suggestions is whole
    }
    if (composer.speaker === speaker) this.greet();
  }

  /** Files that go out, and those that come in. */
  bindFiles() {
    const dialog = this.querySelector("#export-dialog");
    dialog.querySelector("copy-button").textOf = () => this.exported("md");
    dialog.addEventListener("submit", ({ submitter }) => {
      const kind = submitter.dataset.export;
      saveAs(`${fileName(this.talkTitle)}.${kind}`, this.exported(kind), kind === "json" ? "application/json" : "text/markdown;charset=utf-8");
    });
    this.addEventListener("chat-import", ({ detail }) => this.#import(detail.file));
  }

  get talkTitle() {
    return this.talk?.title || t("Untitled chat");
  }

  /** @param {"md"|"json"} kind @returns the text of the file */
  exported(kind) {
    const { tree, system, talkTitle: title } = this;
    const { checkpoint_id: model, adapter_checkpoint_id: adapter, mode, sampling } = this.body();
    const talk = { title, model: modelId(model, adapter), mode, system, sampling, messages: tree.path, all: tree.messages, head: tree.head };
    const names = { user: t("You"), tool: t("Tool") };
    return kind === "json" ? asJson(talk) : asMarkdown(talk, ({ role, ...who }) =>
      names[role] ?? (this.named(who.checkpoint_id, who.adapter_checkpoint_id) || t("Model")), t("Thoughts"));
  }

  /** The conversation of a file among one's own, and open. */
  async #import(file) {
    try {
      if (file.size > MOST_BYTES) {
        throw new Error(t("This file is too large: a conversation has at most %(size)s.", { size: bytes(MOST_BYTES) }));
      }
      const body = readTalk(await file.text(), { name: file.name, isThere: (id) => this.checkpoints.has(id) });
      const { id } = await post("/conversations", body, { key: newKey() });
      location.assign(`/chat/${id}`);
    } catch (error) {
      toastError({ message: t("%(file)s was not imported.", { file: file.name }), hint: [error.message, error.hint].filter(Boolean).join(" ") });
    }
  }

  /** Everything up to `message` as a conversation of its own. */
  async fork(message) {
    try {
      const messages = this.tree.copyTo(message).map(plainMessage);
      const { id } = await post("/conversations", { ...this.body(), messages, head: messages.at(-1).id }, { key: newKey() });
      location.assign(`/chat/${id}`);
    } catch (error) {
      toastError(error);
    }
  }
}
