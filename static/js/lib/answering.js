// Asking a model for the next message of a branch, for more of its last one, and again while it calls tools.

import { chatRequest, modelId, receive, textRequest } from "./conversation.js";
import { t } from "./i18n.js";
import { completion } from "./sse.js";
import { tokenOptions } from "./token-chances.js";
import { runTools, toolList } from "./tools.js";

export const MOST_ROUNDS = 5; // of tools for one question: a model that has lost its way calls without end

const isEmpty = (message) => !message.content && !message.reasoning && !message.tool_calls?.length;

/**
 * `host` is {tree, who: {model, adapter, mode}, system, sampling}, read anew for each round, and is told: began(answer),
 * heard(part), changed(). `live` is the answer that is coming, `isRunning` whether tools are at work.
 */
export class Answering {
  constructor(host, { ask = completion, list = toolList, run = runTools } = {}) {
    Object.assign(this, { host, ask, list, run, live: null, isRunning: false, controller: null });
  }

  get isBusy() {
    return this.controller !== null;
  }

  stop() {
    this.controller?.abort();
  }

  /** @param {object|null} message to go on with, else the next one is asked for. @returns {Promise<Error|null>} */
  async answer(message = null) {
    if (this.isBusy) return null;
    const controller = (this.controller = new AbortController());
    try {
      let error = await this.#round(message, controller.signal);
      for (let round = 0; !error && round < MOST_ROUNDS && this.#calls(); round += 1) {
        await this.#runTools(controller.signal);
        error = await this.#round(null, controller.signal);
      }
      return error;
    } catch (error) {
      return error.name === "AbortError" ? null : error;
    } finally {
      this.live = null;
      this.isRunning = false;
      this.controller = null;
    }
  }

  /** Without its tools the model would be asked something else than what was chosen. */
  async #tools() {
    try {
      return await this.list();
    } catch (error) {
      error.message = t("The model was not asked, because its tools could not be loaded: %(reason)s", { reason: error.message });
      error.hint = t("Try again, or switch the tools off in the settings.");
      throw error;
    }
  }

  #calls() {
    const { last } = this.host.tree;
    return last?.role === "assistant" && last.finish_reason === "tool_calls" && last.tool_calls?.length ? last.tool_calls : null;
  }

  async #runTools(signal) {
    this.isRunning = true;
    this.host.changed();
    const results = await this.run(this.#calls(), signal);
    this.isRunning = false;
    for (const result of results) this.host.tree.add({ ...result, created_at: new Date().toISOString() });
    this.host.changed();
  }

  async #round(message, signal) {
    const { host } = this;
    const { tree } = host;
    const { model, adapter, mode } = host.who;
    const asked = { model: modelId(model, adapter), system: host.system, sampling: host.sampling, messages: tree.path };
    const tools = mode === "chat" && asked.sampling.tools ? await this.#tools() : [];
    signal.throwIfAborted();
    const [path, body] = mode === "text" ? ["/v1/completions", textRequest(asked)]
      : ["/v1/chat/completions", chatRequest({ ...asked, tools, isContinued: message !== null })];
    const before = message && { ...message };
    const parent = tree.head;
    const answer = (this.live = message ?? tree.add({ role: "assistant", content: "", checkpoint_id: model, adapter_checkpoint_id: adapter,
                                                      created_at: new Date().toISOString() }));
    answer.finish_reason = null;
    host.began(answer);
    const error = await receive(answer, this.ask(path, { ...body, ...tokenOptions(path) }, { signal }), (part) => host.heard(part));
    this.live = null;
    if (["cancelled", "error"].includes(answer.finish_reason)) {
      if (before && answer.content === before.content) Object.assign(answer, before);
      else if (isEmpty(answer)) {
        tree.prune(answer);
        if (!tree.siblings(answer).length) tree.show(parent);
      }
    }
    host.changed();
    return error;
  }
}
