import assert from "node:assert/strict";
import { test } from "node:test";
import { facts, partsOf, prettyJson, resultsOf, resultText, shortArguments, thoughtWords, timeThoughts } from "../../static/js/lib/message-facts.js";

test("the foot of an answer", () => {
  assert.deepEqual(facts({ usage: { completion_tokens: 5 }, speed: { tokens_per_s: 143.2, first_token_s: 0.2149 }, finish_reason: "length" }, "Tuned"),
                   ["Tuned", "5 tokens", "143 tokens/s", "first after 0.21 s", "cut off at the limit"]);
  assert.deepEqual(facts({ usage: { completion_tokens: 1 }, tokensPerSecond: 4.26, finish_reason: "stop" }), ["1 token", "4.3 tokens/s", "ended by itself"]);
  assert.deepEqual(facts({ finish_reason: null }), ["interrupted: the page was left before it ended"]);
  assert.deepEqual(["cancelled", "error", "tool_calls", "content_filter"].map((reason) => facts({ finish_reason: reason })[0]),
                   ["stopped", "broke off", "called a tool", undefined]);
});

test("thoughts come first, and old answers have them in their text", () => {
  assert.deepEqual(partsOf({ reasoning: " Hm. ", content: "Yes" }, false).map(({ thought, text }) => [thought, text]), [[true, "Hm."], [false, "Yes"]]);
  assert.deepEqual(partsOf({ content: "<think>Hm.</think>Yes" }, false).map(({ thought, text }) => [thought, text]), [[true, "Hm."], [false, "Yes"]]);
  assert.deepEqual([{}, { content: "Y" }, { tool_calls: [{}] }].map((more) => partsOf({ reasoning: "Hm", content: "", ...more }, true)[0].isOpen),
                   [true, false, false]);
  assert.equal(partsOf({ reasoning: "Hm", content: "" }, false)[0].isOpen, false);
  assert.deepEqual(partsOf({ content: "" }, false), []);
});

test("thinking is timed while it goes on", () => {
  const message = { reasoning: "", content: "" };
  timeThoughts(message, true, 1000);
  message.reasoning = "Hm";
  timeThoughts(message, true, 2000);
  timeThoughts(message, true, 3000);
  assert.equal(thoughtWords(partsOf(message, true)[0], message, true), "Thinking…");
  message.content = "Yes";
  timeThoughts(message, true, 4140);
  timeThoughts(message, true, 9000);
  const part = partsOf(message, true)[0];
  assert.equal(thoughtWords(part, message, true), "Thought for 2.1 s");
  message.usage = { completion_tokens: 9, completion_tokens_details: { reasoning_tokens: 4 } };
  assert.equal(thoughtWords(part, message, false), "Thought for 2.1 s · 4 tokens");
  assert.equal(thoughtWords(part, { usage: message.usage }, false), "Thought for 4 tokens");
  assert.equal(thoughtWords(part, {}, false), "Thoughts");
  const loaded = { reasoning: "Hm", content: "Yes" };
  timeThoughts(loaded, false, 5000);
  assert.equal(loaded.thought_s, undefined);
});

test("results of calls are the tool messages right after them", () => {
  const called = { role: "assistant", tool_calls: [{ id: "a" }, { id: "b" }] };
  const tool = (id) => ({ role: "tool", tool_call_id: id });
  const messages = [{ role: "user" }, called, tool("b"), tool("x"), tool("a"), { role: "assistant" }, tool("a")];
  assert.deepEqual(resultsOf(messages, called), [messages[2], messages[4]]);
  assert.deepEqual(resultsOf(messages, messages[0]), []);
  assert.deepEqual(resultsOf([called], called), []);
});

test("JSON is laid out where it is long, and anything else left as it is", () => {
  assert.equal(prettyJson('{"a": 1}'), '{"a": 1}');
  assert.equal(prettyJson(`{"a":"${"x".repeat(90)}"}`), `{\n  "a": "${"x".repeat(90)}"\n}`);
  for (const text of ["13", "sunny", '{"a": ', "", "12345678901234567890123"]) assert.equal(prettyJson(text), text);
  assert.equal(resultText({ content: '{"error": "No."}', is_error: true }), "No.");
  assert.equal(resultText({ content: '{"error": "No."}', is_error: false }), '{"error": "No."}');
  for (const content of ["oops", '{"error": 1}']) assert.equal(resultText({ content, is_error: true }), content);
  assert.equal(shortArguments('{"value": 1, "unit": "km"}'), 'value: 1, unit: "km"');
  assert.equal(shortArguments(""), "");
  for (const text of ["[1]", "1", "{", `{"a": "${"x".repeat(90)}"}`]) assert.equal(shortArguments(text), null);
});
