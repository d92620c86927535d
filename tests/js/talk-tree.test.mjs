import assert from "node:assert/strict";
import { test } from "node:test";
import { Answering, MOST_ROUNDS } from "../../static/js/lib/answering.js";
import { DraftStorage, keepDraft, loadDraft, markLive, takeDrafts, wasLive } from "../../static/js/lib/drafts.js";
import { asJson, asMarkdown, fileName } from "../../static/js/lib/talk-export.js";
import { newId, TalkTree } from "../../static/js/lib/talk-tree.js";

const say = (tree, content, parent) => tree.add({ role: "user", content }, parent);
const contents = (tree) => tree.path.map((message) => message.content);

test("an edited message begins a branch, and each branch is left where it was seen last", () => {
  const tree = new TalkTree();
  const first = say(tree, "a");
  const answer = say(tree, "b");
  say(tree, "c");
  const other = say(tree, "b2", first.id);
  assert.deepEqual(contents(tree), ["a", "b2"]);
  assert.deepEqual(tree.siblings(other), [answer, other]);
  assert.ok(tree.turn(other, -1));
  assert.deepEqual(contents(tree), ["a", "b", "c"], "down to its end");
  assert.ok(!tree.turn(answer, -1), "there is none before it");
  say(tree, "c2", answer.id);
  tree.turn(answer, 1);
  tree.turn(other, -1);
  assert.deepEqual(contents(tree), ["a", "b", "c2"]);
});

test("a branch that is deleted goes with all that follows it", () => {
  const tree = new TalkTree();
  const first = say(tree, "a");
  const answer = say(tree, "b");
  say(tree, "c");
  say(tree, "b2", first.id);
  tree.prune(answer);
  assert.deepEqual(tree.messages.map((m) => m.content), ["a", "b2"]);
  tree.prune(tree.last);
  assert.deepEqual([contents(tree), tree.head], [["a"], first.id]);
  tree.prune(first);
  assert.deepEqual([tree.messages, tree.head], [[], null]);
});

test("a branch is copied with ids of its own", () => {
  const tree = new TalkTree();
  say(tree, "a");
  const second = say(tree, "b");
  say(tree, "c");
  const copy = tree.copyTo(second);
  assert.deepEqual(copy.map((m) => m.content), ["a", "b"]);
  assert.equal(copy[1].parent_id, copy[0].id);
  assert.ok(!tree.get(copy[0].id));
  assert.match(newId(), /^[A-Za-z0-9_-]{12}$/);
  assert.equal(new TalkTree(tree.messages, "gone").head, tree.messages.at(-1).id);
});

/** A host of Answering whose model says `rounds`, one list of parts each. */
function talk(rounds, sampling = {}) {
  const bodies = [];
  const host = { tree: new TalkTree(), who: { model: "m", adapter: null, mode: "chat" }, system: "", sampling,
                 began() {}, heard() {}, changed() {} };
  const answering = new Answering(host, {
    ask: (path, body) => (bodies.push(body), (async function* () { yield* rounds.shift() ?? rounds.last; })()),
    list: async () => [{ type: "function", function: { name: "calc" } }],
    run: async (calls) => calls.map(({ id, name }) => ({ role: "tool", tool_call_id: id, name, content: "4", is_error: false })),
  });
  say(host.tree, "2+2?");
  return { host, answering, bodies };
}

const call = [{ tool_calls: [{ index: 0, id: "c1", name: "calc", arguments: "{}" }] }, { finish_reason: "tool_calls" }];

test("a model that calls a tool is asked again with what came of it", async () => {
  const { host, answering, bodies } = talk([call, [{ text: "Four." }, { finish_reason: "stop" }]], { tools: true, thinking: true });
  assert.equal(await answering.answer(), null);
  assert.deepEqual(host.tree.path.map(({ role }) => role), ["user", "assistant", "tool", "assistant"]);
  assert.equal(bodies[0].tools.length, 1);
  assert.deepEqual(bodies[0].chat_template_kwargs, { open_thinking: true });
  assert.deepEqual(bodies[1].messages.slice(1), [
    { role: "assistant", content: "", tool_calls: [{ id: "c1", type: "function", function: { name: "calc", arguments: "{}" } }] },
    { role: "tool", content: "4", tool_call_id: "c1", name: "calc" }]);
  assert.equal(answering.isBusy, false);
});

test("a model that calls tools without end is stopped", async () => {
  const rounds = [];
  rounds.last = call;
  const { answering, bodies } = talk(rounds, { tools: true });
  await answering.answer();
  assert.equal(bodies.length, MOST_ROUNDS + 1);
});

test("an answer is gone on with, and one of which nothing came leaves no trace", async () => {
  const { host, answering, bodies } = talk([[{ text: "One, " }, { finish_reason: "length" }], [{ text: "two." }], [{ finish_reason: "error" }]]);
  await answering.answer();
  await answering.answer(host.tree.last);
  assert.deepEqual([bodies[1].continue_final_message, bodies[1].messages.at(-1).content], [true, "One, "]);
  assert.deepEqual([host.tree.last.content, host.tree.last.finish_reason], ["One, two.", "stop"]);
  await answering.answer();
  assert.equal(host.tree.last.content, "One, two.");
});

test("drafts belong to a user and a conversation", () => {
  const kept = new Map();
  const storage = { getItem: (name) => kept.get(name) ?? null, setItem: (name, text) => kept.set(name, text), removeItem: (name) => kept.delete(name) };
  keepDraft("u", null, "half", storage);
  assert.deepEqual([loadDraft("u", null, storage), loadDraft("u", "c", storage), loadDraft("v", null, storage)], ["half", "", ""]);
  keepDraft("u", null, "", storage);
  assert.equal(kept.size, 0);
  markLive("u", "m1", storage);
  assert.ok(wasLive("u", "m1", storage) && !wasLive("u", "m2", storage));
  const full = { setItem() { throw new Error("full"); } };
  keepDraft("u", null, "x", full);
});

test("an export holds the branch to read and every branch to go on with", () => {
  const tree = new TalkTree();
  const first = say(tree, "Hi");
  say(tree, "old", first.id);
  tree.add({ role: "assistant", content: "Yes.", reasoning: "hm" }, first.id);
  const whole = { title: "A/B: 中文", model: "m", system: "Be kind.", sampling: {}, messages: tree.path, all: tree.messages, head: tree.head };
  assert.equal(asMarkdown(whole, ({ role }) => role, "Thoughts"),
               "# A/B: 中文\n\n> Be kind.\n\n## user\n\nHi\n\n## assistant\n\n> **Thoughts**\n> \n> hm\n\nYes.\n");
  const json = JSON.parse(asJson(whole));
  assert.deepEqual(json.messages, [{ role: "system", content: "Be kind." }, { role: "user", content: "Hi" },
                                   { role: "assistant", content: "Yes.", reasoning_content: "hm" }]);
  assert.equal(json.branches.length, 3);
  assert.equal(fileName(whole.title), "A-B-中文");
});

/** A page of a tab as far as drafts see it. */
function page(state, name = "") {
  const listeners = { beforeunload: [], pagehide: [], pageshow: [] };
  const view = { name, history: { state, replaceState(next) { this.state = next; } },
                 addEventListener: (event, work) => listeners[event].push(work) };
  const happen = (event) => listeners[event].forEach((work) => work());
  return { view, storage: new DraftStorage(view), leave: () => happen("pagehide"), show: () => happen("pageshow") };
}

test("drafts stand in the history entry, beside what else is there", () => {
  const { view, storage, leave } = page({ other: 1 });
  keepDraft("u", null, "half", storage);
  leave(); // sooner than the timer
  assert.equal(view.history.state.other, 1);
  assert.equal(loadDraft("u", null, page(view.history.state).storage), "half"); // as after a reload
  keepDraft("u", null, "", storage);
  leave();
  assert.equal(loadDraft("u", null, page(view.history.state).storage), "");
});

test("drafts go along to the next page of the tab, and what was sent there stays sent", () => {
  const first = page(null);
  takeDrafts(first.view, first.storage);
  keepDraft("u", "a", "half", first.storage);
  const next = page(null, first.view.name);
  takeDrafts(next.view, next.storage);
  assert.equal(loadDraft("u", "a", next.storage), "half");
  keepDraft("u", "a", "", next.storage);
  first.view.name = next.view.name; // Back brings the first page as it was left
  first.show();
  assert.equal(loadDraft("u", "a", first.storage), "");
  const behind = page({ drafts: { "studio-draft:u:a": "half" } }, next.view.name);
  takeDrafts(behind.view, behind.storage);
  assert.equal(loadDraft("u", "a", behind.storage), "", "its entry is older");
  for (const name of ["somebody-elses", "studio-drafts:{", 'studio-drafts:{"studio-draft:u:a":{"x":1}}']) {
    const strange = page(null, name);
    takeDrafts(strange.view, strange.storage);
    assert.equal(loadDraft("u", "a", strange.storage), "", name);
  }
});

test("where its tools cannot be loaded the model is not asked, and that is said", async () => {
  const { host, answering, bodies } = talk([[{ text: "x" }]], { tools: true });
  answering.list = async () => { throw Object.assign(new Error("The studio does not answer."), { hint: "" }); };
  const error = await answering.answer();
  assert.match(error.message, /its tools could not be loaded: The studio does not answer\./);
  assert.match(error.hint, /switch the tools off/);
  assert.deepEqual([bodies.length, host.tree.messages.length, answering.isBusy], [0, 1, false]);
});
