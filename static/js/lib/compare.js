// Models side by side: columns that answer the same turns, each with its own thread; who is asked what; a vote.

import { chatRequest, modelId, receive, speakable, splitThoughts, textRequest } from "./conversation.js";
import { tokenOptions } from "./token-chances.js";

export const FEWEST = 2;
export const MOST = 4;
const MOST_SEED = 2 ** 31 - 1;
const WHOLE = ["stop", "length", "tool_calls"]; // endings of an answer that can be compared

/** One model, and what it answered to each turn. `live`: the answer that is coming; `error`: why there is none. */
export class Column {
  constructor(model, adapter = null) {
    Object.assign(this, { model, adapter, answers: [], live: null, error: null, isStopped: false, controller: null });
  }

  get id() {
    return modelId(this.model, this.adapter);
  }
}

const spoken = ({ role, content, reasoning }) => ({ role, content, ...(reasoning ? { reasoning } : {}) });

/** What is said in a column before its next answer. */
export function thread(turns, answers) {
  return turns.slice(0, answers.length + 1).flatMap((content, place) => [
    { role: "user", content }, ...(place < answers.length ? [spoken(answers[place])] : [])]);
}

/** The same seed for all, except that two answers of one model would be equal with it; else another one for each. */
export function seedOf(columns, column, base, isSame) {
  const place = columns.indexOf(column);
  const before = isSame ? columns.slice(0, place).filter(({ id }) => id === column.id).length : place;
  return (base + before) % MOST_SEED;
}

/** An answer as a preference pair keeps it: what was thought apart from what was said. */
export function answerTurn(message, mode) {
  const parts = mode === "text" ? [{ thought: false, text: message.content }] : splitThoughts(message.content);
  const join = (thought) => parts.filter((part) => part.thought === thought).map((part) => part.text).join("\n\n");
  const reasoning = message.reasoning || join(true);
  return { role: "assistant", content: join(false), ...(reasoning ? { reasoning_content: reasoning } : {}) };
}

/**
 * A comparison. `complete(path, body, {signal})` gives the parts of an answer (see completion() of sse.js); `settings()`
 * is {mode: "auto"|"chat"|"text", system, sampling, seed, isSameSeed}; `continuesText(column)`: it was never taught to
 * answer; `onChange(column)` is told of each change, null: of all.
 */
export class Comparison {
  constructor({ columns, complete, settings, continuesText, onChange = () => {}, random = Math.random, now = () => performance.now() }) {
    Object.assign(this, { columns, complete, settings, continuesText, onChange, random, now });
    this.isBlind = false;
    this.begin();
  }

  /** Another prompt; who stands where is mixed anew where that is to be guessed. */
  begin() {
    this.stop();
    Object.assign(this, { turns: [], bases: [], vote: null, isRevealed: false });
    this.columns = this.columns.map(({ model, adapter }) => new Column(model, adapter));
    if (this.isBlind && this.random() < 0.5) this.columns.reverse();
    this.onChange(null);
  }

  /** All that is shown, as it can be kept; without the answers that are just coming. */
  get snapshot() {
    const { turns, bases, vote, isBlind, isRevealed } = this;
    return { turns, bases, vote, isBlind, isRevealed, columns: this.columns.map(({ model, adapter, answers, live, isStopped, error }) => ({
      model, adapter, isStopped, isAsked: live !== null, error: error && { message: error.message, hint: error.hint },
      answers: answers.filter((answer) => answer !== live).map(({ tokens: _, ...answer }) => answer) })) };
  }

  /** What `snapshot` was at another time. Whoever was answering then is asked the same again. */
  restore({ columns, ...kept }) {
    const { length } = kept.turns;
    Object.assign(this, kept, { columns: columns.map(({ model, adapter, answers, isStopped, error }) => (
      Object.assign(new Column(model, adapter), { answers: answers.slice(0, length), isStopped, error }))) });
    this.onChange(null);
    return this.catchUp(this.columns.filter((_, place) => columns[place].isAsked));
  }

  get isBusy() {
    return this.columns.some((column) => column.controller);
  }

  /** Whether who is who is hidden at this time. */
  get isHidden() {
    return this.isBlind && !this.isRevealed;
  }

  get canVote() {
    const isWhole = (column) => !column.controller && column.answers.length === this.turns.length
      && WHOLE.includes(column.answers.at(-1).finish_reason);
    return this.columns.length === FEWEST && this.turns.length > 0 && this.vote === null && this.columns.every(isWhole);
  }

  /** It was voted; who is who is no secret any more. */
  keep(vote) {
    Object.assign(this, { vote, isRevealed: true });
    this.onChange(null);
  }

  /** The vote was taken back. */
  takeBack() {
    this.vote = null;
    this.onChange(null);
  }

  mode(column) {
    const { mode } = this.settings();
    return mode === "auto" ? (this.continuesText(column) ? "text" : "chat") : mode;
  }

  /** Ask all of them. Behind a vote it is the first turn of another comparison. */
  say(text) {
    if (this.isBusy) return Promise.resolve();
    if (this.vote) this.begin();
    this.turns.push(speakable(text));
    this.bases.push(this.#base());
    this.onChange(null);
    return this.catchUp();
  }

  /** Other answers to the last turn. */
  again() {
    if (this.isBusy || !this.turns.length) return Promise.resolve();
    if (this.isBlind && this.isRevealed) { // it is to be guessed again who is who
      const { turns } = this;
      this.begin();
      Object.assign(this, { turns, bases: turns.map(() => this.#base()) });
    } else {
      this.vote = null;
      for (const column of this.columns) column.answers.length = Math.min(column.answers.length, this.turns.length - 1);
      this.bases[this.bases.length - 1] = this.#base();
    }
    this.onChange(null);
    return this.catchUp();
  }

  #base() {
    return this.settings().seed ?? Math.floor(this.random() * MOST_SEED);
  }

  stop() {
    for (const column of this.columns ?? []) column.controller?.abort();
  }

  /** Have every column, or one, answer the turns that it has not answered yet. */
  catchUp(columns = this.columns) {
    return Promise.all(columns.map((column) => this.#catchUp(column)));
  }

  async #catchUp(column) {
    if (column.controller) return;
    const broken = column.answers.at(-1);
    if (broken && !WHOLE.includes(broken.finish_reason)) column.answers.pop(); // tried again from its beginning
    Object.assign(column, { error: null, isStopped: false });
    while (column.answers.length < this.turns.length && this.columns.includes(column)) {
      if (!(await this.#ask(column))) return;
    }
  }

  /** One answer; whether it came whole. */
  async #ask(column) {
    const { system, sampling, isSameSeed } = this.settings();
    const place = column.answers.length;
    const mode = this.mode(column);
    const seed = seedOf(this.columns, column, this.bases[place], isSameSeed);
    const asked = { model: column.id, system, sampling: { ...sampling, seed }, messages: thread(this.turns, column.answers) };
    const [path, body] = mode === "text" ? ["/v1/completions", textRequest(asked)] : ["/v1/chat/completions", chatRequest(asked)];
    const answer = { role: "assistant", content: "", finish_reason: null, mode, seed, firstMs: null, sampling: { ...sampling, seed } };
    const began = this.now();
    column.answers.push(answer);
    Object.assign(column, { live: answer, controller: new AbortController() });
    this.onChange(column);
    column.error = await receive(answer, this.complete(path, { ...body, ...tokenOptions(path) }, { signal: column.controller.signal }), (part) => {
      if ((part.text || part.reasoning) && answer.firstMs === null) answer.firstMs = this.now() - began;
      this.onChange(column);
    });
    Object.assign(column, { live: null, controller: null, isStopped: answer.finish_reason === "cancelled" });
    const isWhole = WHOLE.includes(answer.finish_reason);
    if (!isWhole && !answer.content && !answer.reasoning) column.answers.splice(column.answers.indexOf(answer), 1);
    this.onChange(column);
    return isWhole;
  }

  /** Another model in place of `column`, or one more where that is null; it answers what was asked already. */
  put(column, model, adapter = null) {
    const made = new Column(model, adapter);
    column?.controller?.abort();
    this.columns = column ? this.columns.map((each) => (each === column ? made : each)) : [...this.columns, made];
    this.vote = null;
    this.onChange(null);
    return this.catchUp([made]);
  }

  remove(column) {
    column.controller?.abort();
    this.columns = this.columns.filter((each) => each !== column);
    this.vote = null;
    this.onChange(null);
  }

  /**
   * The body of POST /votes: the prompt is everything that both columns share, an answer what stands behind it. Of
   * continued texts only the last one counts, since each begins anew.
   */
  voteBody(verdict) {
    const modes = this.columns.map((column) => column.answers.at(-1).mode);
    const said = this.columns.map((column) => column.answers.map((answer) => answerTurn(answer, answer.mode)));
    const last = this.turns.length - 1;
    let from = modes.includes("text") ? last : 0;
    const { system } = this.settings();
    const messages = system.trim() && !modes.includes("text") ? [{ role: "system", content: system }] : [];
    messages.push({ role: "user", content: this.turns[from] });
    for (; from < last && JSON.stringify(said[0][from]) === JSON.stringify(said[1][from]); from += 1) {
      messages.push(said[0][from], { role: "user", content: this.turns[from + 1] });
    }
    const answers = this.columns.map((column, place) => ({
      checkpoint_id: column.model, ...(column.adapter ? { adapter_checkpoint_id: column.adapter } : {}),
      sampling: column.answers[last].sampling, mode: modes[place],
      messages: this.turns.slice(from).flatMap((turn, at) => [
        ...(at ? [{ role: "user", content: turn }] : []), said[place][from + at]]) }));
    return { messages, answers, verdict, is_blind: this.isHidden };
  }
}
