// The built-in tools that a model may call in the chat: which there are, and running its calls.

import { get, post } from "./api.js";
import { t } from "./i18n.js";

const MOST_CALLS = 16; // of one answer: a model that has lost its way calls without end

let asked = null;

/** The tools as OpenAI defines them, for `tools` of a request. Asked for once a page. */
export function toolList() {
  asked ??= get("/tools").then(({ items }) => items).catch((error) => {
    asked = null; // the next one may go well
    throw error;
  });
  return asked;
}

/** What a tool does, for those who choose; the definitions themselves are for the model. Null: a tool of somebody else. */
export function toolWords(name) {
  const words = {
    calculate_math: t("Calculates an expression."),
    unit_converter: t("Converts lengths, masses, temperatures and more."),
    get_current_time: t("Tells date and time in any time zone."),
    random_number: t("Draws a random whole number."),
    text_length: t("Counts the characters, words and lines of a text."),
    count_text: t("Counts how often a letter or word stands in a text."),
    calc: t("Calculates, as the starter data teach it."),
    phone: t("Looks into an invented telephone book, as the starter data teach it."),
    weather: t("Tells invented weather, as the starter data teach it."),
    clock: t("Tells the time in a city, as the starter data teach it."),
  };
  return words[name] ?? null;
}

/** The tools that the starter data teach: a model that was trained on them knows no others. */
export const STARTER_TOOLS = ["calc", "phone", "weather", "clock"];

/**
 * The messages that answer `calls` ({id, name, arguments} of an assistant's message), in their order. A call that
 * cannot be run is answered too, with a sentence; only being stopped throws (AbortError).
 */
export async function runTools(calls, signal) {
  return Promise.all(calls.map(async ({ id, name, arguments: text }, place) => {
    const message = { role: "tool", tool_call_id: id, name };
    if (place >= MOST_CALLS) return { ...message, ...failed(t("These were too many calls at once.")) };
    try {
      const { content, is_error } = await post("/tools/run", { name, arguments: text || "{}" }, { signal });
      return { ...message, content, is_error };
    } catch (error) {
      if (error.name === "AbortError") throw error;
      return { ...message, ...failed(error.message) };
    }
  }));
}

const failed = (sentence) => ({ content: JSON.stringify({ error: sentence }), is_error: true });
