import assert from "node:assert/strict";
import { test } from "node:test";
import { plainMessage } from "../../static/js/lib/conversation.js";
import { asJson } from "../../static/js/lib/talk-export.js";
import { readTalk } from "../../static/js/lib/talk-import.js";
import { TalkTree } from "../../static/js/lib/talk-tree.js";

const read = (value, name = "my talk.json") => readTalk(typeof value === "string" ? value : JSON.stringify(value), {
  name, isThere: (id) => id === "here" });

test("what was exported comes back with all its branches", () => {
  const tree = new TalkTree();
  const first = tree.add({ role: "user", content: "2+2?" });
  const call = { id: "c1", name: "calc", arguments: "{}" };
  const calling = tree.add({ role: "assistant", content: "", reasoning: "hm", tool_calls: [call], finish_reason: "tool_calls", checkpoint_id: "gone" });
  tree.add({ role: "tool", content: "4", tool_call_id: "c1", name: "calc", is_error: false });
  tree.add({ role: "assistant", content: "Four.", finish_reason: "stop", usage: { prompt_tokens: 3, completion_tokens: 2 } });
  const other = tree.add({ role: "assistant", content: "Five.", finish_reason: "stop" }, first.id);
  tree.show(calling.id);
  const exported = asJson({ title: "Sums", model: "here+there", mode: "text", system: "Be kind.", sampling: { temperature: 0, tools: true },
                            messages: tree.path, all: tree.messages, head: tree.head });
  assert.deepEqual(read(exported), {
    title: "Sums", checkpoint_id: "here", adapter_checkpoint_id: null, mode: "text", system: "Be kind.",
    sampling: { temperature: 0, tools: true }, messages: tree.messages.map(plainMessage), head: calling.id });
  assert.deepEqual(read(JSON.stringify({ ...JSON.parse(exported), model: "elsewhere", head: "nowhere" })).head, null);
  assert.equal(read({ ...JSON.parse(exported), model: "elsewhere+here" }).adapter_checkpoint_id, null);
  assert.equal(new TalkTree(read(exported).messages, other.id).last.content, "Five.");
});

test("a title is cut between characters, and a field of another kind is left alone", () => {
  const { title, messages, mode } = read({ title: `${"a".repeat(199)}😀b`, branches: [{ role: "user", content: "Hi" }], messages: "abc", mode: 7 });
  assert.equal(title, `${"a".repeat(199)}😀`);
  assert.deepEqual([messages.length, mode], [1, null]);
});

test("messages of OpenAI's API become a conversation", () => {
  const talk = read([
    { role: "developer", content: [{ type: "text", text: "Be " }, { type: "text", text: "kind." }] }, { role: "user", content: "a\0b" },
    { role: "assistant", content: null, reasoning_content: "hm", tool_calls: [{ id: "c", type: "function", function: { name: "f", arguments: "{}" } }] },
    { role: "tool", tool_call_id: "c", content: "4" }, { role: "assistant", content: "Yes.", refusal: null }]);
  assert.deepEqual([talk.title, talk.system, talk.sampling, talk.head], ["my talk", "Be kind.", {}, null]);
  assert.deepEqual(talk.messages, [
    { role: "user", content: "a\ufffdb" },
    { role: "assistant", content: "", reasoning: "hm", tool_calls: [{ id: "c", name: "f", arguments: "{}" }], finish_reason: "tool_calls" },
    { role: "tool", content: "4", tool_call_id: "c" }, { role: "assistant", content: "Yes.", finish_reason: "stop" }]);
});

test("what is no conversation is refused with a sentence", () => {
  for (const [value, said] of [
    ["{", /not JSON/], ["", /not JSON/], ["3", /no conversation/], ["null", /no conversation/], [{ messages: "x" }, /list named messages/],
    [{ messages: [1] }, /must be objects/], [{ messages: [] }, /is empty/], [{ branches: [], messages: [{ role: "user", content: "x" }] }, /is empty/],
    [{ messages: [{ role: "user", content: "a" }, { role: "user", content: [{ type: "image_url", image_url: { url: "data:," } }] }] }, /Message 2 holds something else/],
    [{ messages: [{ role: "user", content: { a: 1 } }] }, /Message 1 holds/], ["[".repeat(100_000), /not JSON/]]) {
    assert.throws(() => read(value), said, String(said));
  }
});

test("of a hostile file only what a conversation has gets through", () => {
  const talk = read(`{"title": "<b>\\u202e\\n${"x".repeat(500)}", "__proto__": {"polluted": 1}, "id": "mine", "user_id": "u",
    "branches": [{"id": "aaaaaa", "role": "user", "content": "<script>", "__proto__": {"polluted": 1}, "user_id": "u"}, 3]}`);
  assert.deepEqual(Object.keys(talk).sort(), ["adapter_checkpoint_id", "checkpoint_id", "head", "messages", "mode", "sampling", "system", "title"]);
  assert.deepEqual(talk.messages, [{ id: "aaaaaa", role: "user", content: "<script>" }, {}]);
  assert.equal(talk.title.length, 200);
  assert.match(talk.title, /^<b> x+$/);
  assert.equal({}.polluted, undefined);
});
