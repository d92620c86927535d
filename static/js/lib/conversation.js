// A conversation: what is asked of a model, what came back, and keeping it on the server.

import { t } from "./i18n.js";
import { addCallPieces } from "./sse.js";

export const SAVE_EVERY_MS = 2000;
export const TRY_AGAIN_MS = 10_000;
const ANSWERED_WITHIN_MS = 30_000; // else it hangs
const CONTINUE_TOKENS = 128; // of a text, which often has no end of its own
const KEEPALIVE_BYTES = 60_000; // browsers send no more once the page is gone
const SENT_REMEMBERED = 5;
const MESSAGE_FIELDS = ["id", "parent_id", "role", "content", "reasoning", "tool_calls", "tool_call_id", "name", "is_error", "finish_reason",
                        "checkpoint_id", "adapter_checkpoint_id", "usage", "speed", "created_at"];

/** Adapters that can be laid over `model`, those that were trained on it first. One of its own takes no second one. */
export function adaptersFor(model, checkpoints) {
  if (model.is_adapter || !model.fits) return [];
  const fitting = checkpoints.filter((checkpoint) => checkpoint.is_adapter && checkpoint.fits === model.fits);
  const isOwn = (adapter) => adapter.base_checkpoint_id === model.id;
  return [...fitting.filter(isOwn), ...fitting.filter((adapter) => !isOwn(adapter))];
}

/** What a model with an adapter over it is called in a request. */
export const modelId = (checkpoint, adapter) => (adapter ? `${checkpoint}+${adapter}` : checkpoint);

/** Text that the server can keep: no zero byte, no half of a surrogate pair. */
export function speakable(text) {
  return text.replace(/\0|\p{Surrogate}/gu, "\ufffd");
}

const given = (object) => Object.fromEntries(Object.entries(object).filter(([, v]) => v !== null && v !== undefined));

/** A message as it is kept; what belongs to the page alone stays behind. */
export function plainMessage(message) {
  const plain = given(Object.fromEntries(MESSAGE_FIELDS.map((name) => [name, message[name]])));
  if (plain.usage) plain.usage = { prompt_tokens: plain.usage.prompt_tokens, completion_tokens: plain.usage.completion_tokens };
  return plain;
}

/** A turn as /v1/chat/completions takes it. */
function turn({ role, content, reasoning, tool_calls: calls, tool_call_id: id, name }) {
  if (role === "tool") return { role, content, tool_call_id: id, ...given({ name }) };
  if (role !== "assistant") return { role, content };
  return { role, content, ...(reasoning ? { reasoning_content: reasoning } : {}), ...(calls?.length ? {
    tool_calls: calls.map((call) => ({ id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } })) } : {}) };
}

/**
 * The body of POST /v1/chat/completions for the next turn after `messages`; `isContinued`: for more of the last one.
 * `tools`: what the model may call, as OpenAI's list.
 */
export function chatRequest({ model, system, sampling, messages, tools = [], isContinued = false }) {
  const turns = messages.map(turn);
  if (system.trim()) turns.unshift({ role: "system", content: system });
  const { tools: _, thinking, ...drawn } = sampling;
  return { model, messages: turns, ...given(drawn), ...(tools.length ? { tools } : {}),
           ...(thinking ? { chat_template_kwargs: { open_thinking: true } } : {}),
           ...(isContinued ? { continue_final_message: true } : {}) };
}

/** The body of POST /v1/completions that goes on where the last message (and the answer so far) ends. */
export function textRequest({ model, sampling, messages }) {
  const from = messages.findLastIndex((message) => message.role === "user");
  const prompt = messages.slice(from).map((message) => message.content).join("");
  const { tools: _tools, thinking: _thinking, ...drawn } = sampling;
  return { model, prompt, max_tokens: CONTINUE_TOKENS, ...given(drawn) };
}

/** An answer cut at its <think> tags: [{thought, text, isOpen}]. One that never closed is still being thought. */
export function splitThoughts(content) {
  const parts = [];
  const add = (thought, text, isOpen = false) => {
    if (text.trim() || isOpen) parts.push({ thought, text: text.trim(), isOpen });
  };
  let rest = content;
  const close = rest.indexOf("</think>");
  const first = rest.indexOf("<think>");
  if (close >= 0 && (first < 0 || close < first)) { // the prompt had opened it
    add(true, rest.slice(0, close));
    rest = rest.slice(close + 8);
  }
  for (;;) {
    const open = rest.indexOf("<think>");
    if (open < 0) break;
    add(false, rest.slice(0, open));
    const end = rest.indexOf("</think>", open);
    if (end < 0) {
      add(true, rest.slice(open + 7), true);
      return parts;
    }
    add(true, rest.slice(open + 7, end));
    rest = rest.slice(end + 8);
  }
  add(false, rest);
  return parts;
}

/**
 * Writes the parts of an answer (see completion() of sse.js) into `message`; `onPart(part)` is told of each. Never
 * throws: an answer that was stopped or failed says so in finish_reason. @returns the error, or null
 */
export async function receive(message, parts, onPart, now = () => performance.now()) {
  let began = now();
  let ended = null;
  const earlier = message.usage?.completion_tokens ?? 0; // of the part that is being gone on with
  try {
    for await (const part of parts) {
      if (part.open) began = now();
      if (part.text) message.content += speakable(part.text);
      if (part.reasoning) message.reasoning = (message.reasoning ?? "") + speakable(part.reasoning);
      if (part.tool_calls) addCallPieces((message.tool_calls ??= []), part.tool_calls);
      if (part.tokens) (message.tokens ??= []).push(...part.tokens);
      if (part.finish_reason) message.finish_reason = part.finish_reason;
      if (part.text || part.reasoning || part.finish_reason) ended = now();
      if (part.usage) {
        message.usage = { ...part.usage, completion_tokens: earlier + part.usage.completion_tokens };
        message.tokensPerSecond = speed(part.usage.completion_tokens, (ended ?? now()) - began);
      }
      const { tokens_per_s: rate, first_token_s: first } = part.timings ?? {};
      if (part.timings) message.speed = given({ tokens_per_s: rate, first_token_s: first });
      onPart(part);
    }
    message.finish_reason ??= "stop";
    return null;
  } catch (error) {
    message.finish_reason = error.name === "AbortError" ? "cancelled" : "error";
    return error.name === "AbortError" ? null : error;
  }
}

/** Tokens a second, null where the time says nothing. */
export function speed(tokens, milliseconds) {
  return tokens > 0 && milliseconds > 5 ? (tokens * 1000) / milliseconds : null;
}

/** At most `count` different prompts of a run's samples, those of its newest step first. */
export function suggestions(samples, count = 3) {
  const newest = [...samples].sort((a, b) => b.step - a.step || (a.prompt_index ?? 0) - (b.prompt_index ?? 0));
  const prompts = newest.map((sample) => sample.prompt.trim()).filter((prompt) => prompt && prompt.length <= 200);
  return [...new Set(prompts)].slice(0, count);
}

/** Whether two states of a conversation say the same. */
export function isSame(a, b) {
  const essence = ({ checkpoint_id = null, adapter_checkpoint_id = null, system = "", sampling = {}, messages = [] }) =>
    JSON.stringify([checkpoint_id, adapter_checkpoint_id, system, Object.entries(given(sampling)).sort(), messages.map(plainMessage).map(
      (message) => MESSAGE_FIELDS.map((name) => message[name] ?? null))]);
  return essence(a) === essence(b);
}

const inTime = () => ({ signal: AbortSignal.timeout(ANSWERED_WITHIN_MS) });
const isTimeout = (error) => ["TimeoutError", "AbortError"].includes(error.name);

/**
 * Keeps a conversation on the server, one request at a time: `soon()` within two seconds, `now()` at once.
 * `state`: "new" (nothing to keep yet), "saving", "kept", "failed" (tried again with the next change and by itself),
 * "conflict" (another tab changed it: `theirs`), "gone" (deleted somewhere else), "ended".
 * `body()` is what is to be kept; `server` is {create(body, key, options), change(id, body, options), load(id, options)};
 * `known` is the conversation as the server has it.
 */
export class Keeper {
  constructor({ id = null, version = null, known = null, body, server, newKey, onState = () => {}, onKept = () => {}, clock = globalThis }) {
    Object.assign(this, { id, version, body, server, newKey, onState, onKept, clock });
    this.state = id === null ? "new" : "kept";
    this.error = null;
    this.theirs = null;
    this.changes = 0; // made, and
    this.saved = 0; // how many of them the server has
    this.title = null; // a new title that waits for being sent
    this.sent = id === null ? [] : [known ? structuredClone(known) : body()]; // what the server may have of us, also where its answer was lost
  }

  get isUnsaved() {
    return this.saved < this.changes || this.title !== null;
  }

  soon() {
    this.changes += 1;
    this.timer ??= this.clock.setTimeout(() => this.#send(), SAVE_EVERY_MS);
  }

  now() {
    this.changes += 1;
    this.isUrgent = true;
    return this.#send();
  }

  rename(title) {
    this.title = title;
    this.isUrgent = true;
    return this.#send();
  }

  retry() {
    if (this.state === "failed" && !this.isUnsaved) { // what was refused is given up
      this.error = null;
      this.#become("kept");
    }
    return this.#send();
  }

  /** The page is being left: hand over what the server does not have, without waiting. */
  leave() {
    if (this.id === null ? !this.first && this.changes === 0 : !this.isUnsaved) return;
    if (["conflict", "gone", "ended"].includes(this.state) || this.left === this.changes) return;
    const body = this.body();
    const bytes = new TextEncoder().encode(JSON.stringify(body)).length;
    const options = { keepalive: bytes < KEEPALIVE_BYTES };
    if (this.id === null) {
      this.#begin(this.changes);
      this.server.create(this.first.body, this.first.key, options).catch(() => {});
      return;
    }
    this.#remember(body);
    this.left = this.changes;
    // behind a save that is on its way it may be refused: rather that than another tab's version overwritten
    this.server.change(this.id, { ...body, version: this.version }, options).catch(() => {});
  }

  /**
   * The page is looked at (again): the newer version of another tab, or of this page before a reload; else null. It is
   * not taken where the page `isAtWork`, also if that began while it was being loaded.
   */
  async refresh(isAtWork = () => false) {
    const { id, version } = this;
    if (id === null || this.isBusy || this.isUnsaved || this.state !== "kept" || isAtWork()) return null;
    let theirs;
    try {
      theirs = await this.server.load(id, inTime());
    } catch (error) {
      if (error.status === 404 && this.state === "kept" && this.id === id) this.#become("gone");
      return null; // whoever is away says so at the next save
    }
    if (this.isBusy || this.isUnsaved || this.state !== "kept" || isAtWork()) return null;
    if (this.version !== version || theirs.version === version) return null;
    this.theirs = theirs;
    return this.takeTheirs();
  }

  /** Overwrite what the other tab has kept. */
  keepMine() {
    this.version = this.theirs.version;
    this.theirs = null;
    this.state = "failed";
    return this.now();
  }

  /** What this tab shows is now the other's version. */
  takeTheirs() {
    const { theirs } = this;
    this.version = theirs.version;
    this.saved = this.changes;
    this.sent = [structuredClone(theirs)]; // the page goes on writing in its own
    this.title = this.theirs = null;
    this.#become("kept");
    return theirs;
  }

  /** It was deleted somewhere else: keep it again, as a new one with the title that it had. */
  keepAgain(title = "") {
    this.title ??= title || null;
    this.id = this.version = null;
    this.state = "new";
    return this.now();
  }

  end() {
    this.clock.clearTimeout(this.timer);
    this.state = "ended";
  }

  async #send() {
    this.clock.clearTimeout(this.timer);
    this.timer = null;
    if (this.isBusy || !this.isUnsaved || ["conflict", "gone", "ended"].includes(this.state)) return;
    this.isBusy = true;
    this.isUrgent = false;
    const seen = this.changes;
    const title = this.title;
    let isOld = false; // what was sent is an older body than the one that should be kept
    if (this.state !== "failed") this.#become("saving");
    try {
      const { kept, covered } = this.id === null ? await this.#create(seen) : await this.#change(seen, title);
      Object.assign(this, { id: kept.id, version: kept.version, error: null, left: undefined });
      this.saved = Math.max(this.saved, covered);
      isOld = covered < seen;
      if (this.state === "ended") return;
      this.onKept(kept);
      this.#become("kept");
    } catch (error) {
      if (this.state !== "ended") await this.#fail(error);
    } finally {
      this.isBusy = false;
    }
    if (this.state === "kept" && this.isUnsaved) {
      this.timer ??= this.clock.setTimeout(() => this.#send(), this.isUrgent || isOld ? 0 : SAVE_EVERY_MS);
    }
  }

  async #create(seen) {
    const { body, key, changes } = this.#begin(seen);
    const kept = await this.server.create(body, key, inTime());
    this.first = null;
    this.sent = [body];
    if (body.title === this.title) this.title = null;
    return { kept, covered: changes };
  }

  /** The same body under the same key until it is answered: an answer that was lost makes no second conversation. */
  #begin(changes) {
    this.first ??= { body: { ...this.body(), ...(this.title === null ? {} : { title: this.title }) }, key: this.newKey(), changes };
    return this.first;
  }

  async #change(seen, title) {
    const body = this.body();
    this.#remember(body);
    const changes = { ...body, ...(title === null ? {} : { title }), version: this.version };
    const kept = await this.server.change(this.id, changes, inTime());
    this.sent = [body];
    if (this.title === title) this.title = null;
    return { kept, covered: seen };
  }

  async #fail(error) {
    if (this.id !== null && error.status === 409) {
      const theirs = await this.server.load(this.id, inTime()).catch(() => null);
      if (theirs && this.sent.some((body) => isSame(theirs, body))) { // our own save, or only its title changed
        this.version = theirs.version;
        this.timer ??= this.clock.setTimeout(() => this.#send(), 0);
        return;
      }
      if (theirs) {
        this.theirs = theirs;
        this.#become("conflict");
        return;
      }
    }
    if (this.id !== null && error.status === 404) {
      this.#become("gone");
      return;
    }
    const isOurFault = error.status >= 400 && error.status < 500 && ![401, 409, 429].includes(error.status);
    if (isOurFault) this.first = this.title = null;
    this.error = isTimeout(error) ? Object.assign(new Error(t("The studio does not answer.")), { status: 0 }) : error;
    this.#become("failed");
    if (!isOurFault) this.timer ??= this.clock.setTimeout(() => this.#send(), TRY_AGAIN_MS);
  }

  #remember(body) {
    this.sent = [...this.sent, body].slice(-SENT_REMEMBERED);
  }

  #become(state) {
    this.state = state;
    this.onState(state);
  }
}
