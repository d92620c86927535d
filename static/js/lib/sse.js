// Server-sent events from a fetch() body, and the answers of /v1 that come as such.

import { ApiError, errorOf } from "./api.js";
import { t } from "./i18n.js";

/** Bytes in, events out: `push` takes any piece of the stream, cut wherever it was. Follows the HTML standard. */
export class SseParser {
  #decoder = new TextDecoder();
  #rest = "";
  #data = [];
  #event = "";
  #id = "";

  /** @returns {{event: string, data: string, id: string}[]} the events that are complete by now */
  push(bytes) {
    this.#rest += this.#decoder.decode(bytes, { stream: true });
    const events = [];
    for (;;) {
      const end = /\r\n|\n|\r/.exec(this.#rest);
      // a CR at the very end may be half of a CRLF
      if (!end || (end[0] === "\r" && end.index === this.#rest.length - 1)) return events;
      const event = this.#line(this.#rest.slice(0, end.index));
      this.#rest = this.#rest.slice(end.index + end[0].length);
      if (event) events.push(event);
    }
  }

  #line(line) {
    if (line === "") return this.#dispatch();
    const colon = line.indexOf(":");
    if (colon === 0) return null; // a comment
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#event = value;
    else if (field === "id" && !value.includes("\0")) this.#id = value;
    return null;
  }

  #dispatch() {
    const event = this.#data.length ? { event: this.#event || "message", data: this.#data.join("\n"), id: this.#id } : null;
    this.#data = [];
    this.#event = "";
    return event;
  }
}

/** The events of a ReadableStream of bytes, as they come; leaving the loop ends the stream. */
export async function* sseEvents(stream) {
  const reader = stream.getReader();
  const parser = new SseParser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(value);
    }
  } finally {
    reader.cancel().catch(() => {}); // broken already: nothing is left to end
  }
}

const brokenOff = () => new ApiError(0, {
  code: "BROKEN_OFF", message: t("The answer broke off: the connection to the studio was lost."),
  hint: t("What has come so far is kept.") });

/** The chunks of a streamed answer of /v1, parsed. Throws ApiError for an error in the stream, or one without end. */
export async function* chunks(stream) {
  const events = sseEvents(stream);
  for (;;) {
    let next;
    try {
      next = await events.next();
    } catch (error) {
      throw error.name === "AbortError" ? error : brokenOff();
    }
    if (next.done) throw brokenOff();
    if (next.value.data === "[DONE]") {
      await events.return();
      return;
    }
    let chunk;
    try {
      chunk = JSON.parse(next.value.data);
    } catch {
      await events.return();
      throw brokenOff();
    }
    if (chunk.error) {
      await events.return();
      throw new ApiError(200, chunk.error);
    }
    yield chunk;
  }
}

/** {token, logprob, bytes, top_logprobs} of every token that a choice brings; completions say it in OpenAI's older shape. */
export function tokensOf(choice) {
  const said = choice?.logprobs;
  if (Array.isArray(said?.content)) return said.content;
  if (!Array.isArray(said?.tokens)) return [];
  return said.tokens.map((name, place) => ({
    ...named(name, said.token_logprobs?.[place] ?? null),
    top_logprobs: Object.entries(said.top_logprobs?.[place] ?? {}).sort(([, a], [, b]) => b - a).map(
      ([other, logprob]) => named(other, logprob)),
  }));
}

/** A token by its name in the older shape, where `bytes:\xe4` is one that holds a part of a character. */
function named(name, logprob) {
  const bytes = /^bytes:((?:\\x[0-9a-f]{2})+)$/.exec(name)?.[1].match(/[0-9a-f]{2}/g).map((pair) => parseInt(pair, 16));
  return { token: bytes ? "\ufffd" : name, logprob, bytes: bytes ?? [...new TextEncoder().encode(name)] };
}

/** A piece of a call as it is streamed: the first has id and name, the others more of the arguments' JSON text. */
const callPiece = ({ index, id, function: called }, place) => ({
  index: index ?? place, ...(id ? { id } : {}), ...(called?.name ? { name: called.name } : {}),
  ...(called?.arguments ? { arguments: called.arguments } : {}),
});

/**
 * An answer of /v1/chat/completions or /v1/completions as parts: {open: true} once the model has begun, then any number
 * of {text}, {reasoning}, {tool_calls: [{index, id?, name?, arguments?}]} (pieces; see addCallPieces) and
 * {tokens: [{token, logprob, bytes, top_logprobs}]}, then {finish_reason}, {usage} and {timings} {queue_s, prefill_s,
 * decode_s, tokens_per_s, first_token_s}. An ApiError may say in `retryAfter` when to try again, in seconds.
 */
export async function* completion(path, body, { signal, fetch = globalThis.fetch } = {}) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  let response;
  try {
    response = await fetch(path, { method: "POST", body: JSON.stringify(asked), signal, credentials: "same-origin",
                                   headers: { "Content-Type": "application/json", Accept: "text/event-stream" } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: t("The studio does not answer."), hint: t("Is it still running?") });
  }
  if (!response.ok) {
    const error = await errorOf(response);
    error.retryAfter = Number(response.headers.get("Retry-After")) || null;
    throw error;
  }
  yield { open: true };
  for await (const chunk of chunks(response.body)) {
    const choice = chunk.choices?.[0];
    const reasoning = choice?.delta?.reasoning_content;
    if (reasoning) yield { reasoning };
    const text = choice?.delta?.content ?? choice?.text;
    if (text) yield { text };
    const calls = choice?.delta?.tool_calls;
    if (calls?.length) yield { tool_calls: calls.map(callPiece) };
    const tokens = tokensOf(choice);
    if (tokens.length) yield { tokens };
    if (choice?.finish_reason) yield { finish_reason: choice.finish_reason };
    if (chunk.usage) yield { usage: chunk.usage };
    if (chunk.timings) yield { timings: chunk.timings };
  }
}

/** Writes pieces of calls ({tool_calls} of completion()) into `calls`, a list of {id, name, arguments}. */
export function addCallPieces(calls, pieces) {
  for (const { index, id, name, arguments: text } of pieces) {
    if (!Number.isInteger(index) || index < 0 || index > calls.length) continue; // calls come one after the other
    calls[index] ??= { id: `call_${index}`, name: "", arguments: "" };
    if (id) calls[index].id = id;
    if (name) calls[index].name += name;
    if (text) calls[index].arguments += text;
  }
  return calls;
}
