// What a message says about itself beside its words: how long it was thought about, how fast it came, how it ended.

import { splitThoughts } from "./conversation.js";
import { integer, short } from "./format.js";
import { t, tn } from "./i18n.js";

const MOST_ON_LINE = 90; // characters

/**
 * The parts of an answer in their order: [{thought, text, isOpen, isTimed}]. What the server told apart (`reasoning`)
 * comes first; in older answers it stands between <think> tags.
 */
export function partsOf(message, isLive) {
  const parts = splitThoughts(message.content ?? "");
  if (!message.reasoning) return parts;
  const isOpen = isLive && !message.content && !message.tool_calls?.length;
  return [{ thought: true, text: message.reasoning.trim(), isOpen, isTimed: true }, ...parts];
}

/** Takes the time of thinking while it goes on; kept with the message as long as the page is there. */
export function timeThoughts(message, isLive, now = performance.now()) {
  if (!isLive || !message.reasoning) return;
  message.thoughtSince ??= now;
  if (message.content || message.tool_calls?.length) message.thought_s ??= (now - message.thoughtSince) / 1000;
}

/** What stands over folded thoughts. */
export function thoughtWords(part, message, isLive) {
  if (part.isOpen && isLive) return t("Thinking…");
  if (!part.isTimed) return t("Thoughts");
  const tokens = message.usage?.completion_tokens_details?.reasoning_tokens;
  const count = tokens ? tn("%(num)s token", "%(num)s tokens", tokens) : null;
  if (message.thought_s) {
    const time = t("Thought for %(seconds)s s", { seconds: short(Number(message.thought_s.toFixed(1))) });
    return count ? `${time} · ${count}` : time;
  }
  return count ? t("Thought for %(tokens)s", { tokens: count }) : t("Thoughts");
}

/** The footer of an answer, in pieces. */
export function facts(message, model = "") {
  const speed = message.speed?.tokens_per_s ?? message.tokensPerSecond;
  const first = message.speed?.first_token_s;
  return [
    model || null,
    message.usage && tn("%(num)s token", "%(num)s tokens", message.usage.completion_tokens),
    speed && t("%(number)s tokens/s", { number: speed < 10 ? short(Number(speed.toFixed(1))) : integer(speed) }),
    typeof first === "number" && t("first after %(seconds)s s", { seconds: short(Number(first.toPrecision(2))) }),
    ending(message.finish_reason),
  ].filter(Boolean);
}

function ending(reason) {
  if (!reason) return t("interrupted: the page was left before it ended");
  return { stop: t("ended by itself"), cancelled: t("stopped"), length: t("cut off at the limit"), error: t("broke off"),
           tool_calls: t("called a tool") }[reason] ?? null;
}

/** The messages of the role tool that answer the calls of `message`: those that follow it in `messages`. */
export function resultsOf(messages, message) {
  const results = [];
  if (!message.tool_calls?.length) return results;
  const ids = new Set(message.tool_calls.map(({ id }) => id));
  for (let at = messages.indexOf(message) + 1; messages[at]?.role === "tool"; at += 1) {
    if (ids.has(messages[at].tool_call_id)) results.push(messages[at]);
  }
  return results;
}

/** JSON as people read it, on one line where it is little; any other text as it is. */
export function prettyJson(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    return text;
  }
  if (typeof value !== "object" || value === null || text.length <= MOST_ON_LINE) return text;
  return JSON.stringify(value, null, 2);
}

/** What a tool gave back: of an error its sentence. */
export function resultText({ content, is_error: isError }) {
  if (!isError) return prettyJson(content);
  try {
    const { error } = JSON.parse(content);
    return typeof error === "string" ? error : prettyJson(content);
  } catch {
    return content;
  }
}

/** Arguments on one line where they are few: `value: 100, to_unit: "mile"`; null where they are too many for that. */
export function shortArguments(text) {
  try {
    const value = JSON.parse(text || "{}");
    if (typeof value !== "object" || value === null || Array.isArray(value)) return null;
    const line = Object.entries(value).map(([name, one]) => `${name}: ${JSON.stringify(one)}`).join(", ");
    return line.length <= MOST_ON_LINE ? line : null;
  } catch {
    return null;
  }
}
