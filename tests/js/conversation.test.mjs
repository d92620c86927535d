import assert from "node:assert/strict";
import { test } from "node:test";
import {
  adaptersFor, chatRequest, isSame, Keeper, modelId, plainMessage, receive, SAVE_EVERY_MS, speakable, speed, splitThoughts, suggestions,
  textRequest, TRY_AGAIN_MS,
} from "../../static/js/lib/conversation.js";

const user = (content) => ({ role: "user", content });
const said = (content, more = {}) => ({ role: "assistant", content, finish_reason: "stop", ...more });

test("a message is kept without what belongs to the page", () => {
  const usage = { prompt_tokens: 3, completion_tokens: 2, total_tokens: 5 };
  assert.deepEqual(plainMessage(said("a", { usage, tokensPerSecond: 9, checkpoint_id: null, created_at: "2026-01-31T12:00:00Z" })),
    { role: "assistant", content: "a", finish_reason: "stop", usage: { prompt_tokens: 3, completion_tokens: 2 },
      created_at: "2026-01-31T12:00:00Z" });
  assert.equal(speakable("a\0b\ud800c🦊\udfff"), "a\ufffdb\ufffdc🦊\ufffd");
});

test("a chat request holds the system prompt, every turn, and only what was set", () => {
  const messages = [user("a"), said("b", { usage: {} }), user("c")];
  assert.deepEqual(chatRequest({ model: "m", system: "Be kind.", sampling: { temperature: 0, seed: null }, messages }),
    { model: "m", temperature: 0, messages: [{ role: "system", content: "Be kind." }, { role: "user", content: "a" },
      { role: "assistant", content: "b" }, { role: "user", content: "c" }] });
  assert.deepEqual(chatRequest({ model: "m", system: " \n", sampling: {}, messages: [user("a")] }).messages, [user("a")]);
});

test("a text is gone on with from its last word, the answer so far included", () => {
  const messages = [user("old"), said("er"), user("Once "), said("upon")];
  assert.deepEqual(textRequest({ model: "m", sampling: {}, messages }), { model: "m", prompt: "Once upon", max_tokens: 128 });
  assert.deepEqual(textRequest({ model: "m", sampling: { max_tokens: 5 }, messages: messages.slice(0, 3) }),
    { model: "m", prompt: "Once ", max_tokens: 5 });
});

test("thoughts are cut out of an answer", () => {
  const cut = (text) => splitThoughts(text).map((part) => [part.thought ? "thought" : "text", part.text, ...(part.isOpen ? ["open"] : [])]);
  assert.deepEqual(cut("Plain."), [["text", "Plain."]]);
  assert.deepEqual(cut("<think>\nhm\n</think>\n\nYes."), [["thought", "hm"], ["text", "Yes."]]);
  assert.deepEqual(cut("hm</think>Yes."), [["thought", "hm"], ["text", "Yes."]]);
  assert.deepEqual(cut("<think>so far"), [["thought", "so far", "open"]]);
  assert.deepEqual(cut("<think>"), [["thought", "", "open"]]);
  assert.deepEqual(cut("<think>\n\n</think>\n\nYes."), [["text", "Yes."]]);
  assert.deepEqual(cut("A<think>b</think>C<think>d</think>E"), [["text", "A"], ["thought", "b"], ["text", "C"], ["thought", "d"], ["text", "E"]]);
  assert.deepEqual(cut("hm</think>A<think>b"), [["thought", "hm"], ["text", "A"], ["thought", "b", "open"]]);
  assert.deepEqual(cut(""), []);
});

test("suggestions are the newest step's prompts, each once", () => {
  const sample = (step, prompt_index, prompt) => ({ step, prompt_index, prompt });
  assert.deepEqual(suggestions([sample(1, 0, "old"), sample(9, 1, "b"), sample(9, 0, "a"), sample(9, 2, " a "), sample(5, 0, "c"),
                                sample(9, 3, ""), sample(9, 4, "x".repeat(300))]), ["a", "b", "c"]);
  assert.deepEqual(suggestions([]), []);
});

async function* parts(list, end) {
  yield* list;
  if (end) throw end;
}

test("an answer grows part by part and knows its speed", async () => {
  const times = [0, 1000, 1500, 2000, 2000];
  const message = said("", { finish_reason: null });
  const heard = [];
  const error = await receive(message, parts([{ open: true }, { text: "Hi\0" }, { finish_reason: "length" },
                                              { usage: { prompt_tokens: 3, completion_tokens: 10 } }]),
                              (part) => heard.push(Object.keys(part)[0]), () => times.shift());
  assert.equal(error, null);
  assert.deepEqual([message.content, message.finish_reason, message.tokensPerSecond], ["Hi\ufffd", "length", 10]);
  assert.deepEqual(heard, ["open", "text", "finish_reason", "usage"]);
  await receive(message, parts([{ text: " ho" }, { usage: { prompt_tokens: 5, completion_tokens: 4 } }]), () => {});
  assert.deepEqual([message.content, message.usage.completion_tokens], ["Hi\ufffd ho", 14], "gone on with");
  assert.equal(speed(10, 0), null);
  assert.equal(speed(0, 100), null);
});

test("an answer that was stopped or broke off keeps what came", async () => {
  const stopped = said("", { finish_reason: null });
  assert.equal(await receive(stopped, parts([{ text: "a" }], new DOMException("", "AbortError")), () => {}), null);
  assert.deepEqual([stopped.content, stopped.finish_reason], ["a", "cancelled"]);
  const broken = said("", { finish_reason: null });
  const why = new Error("away");
  assert.equal(await receive(broken, parts([{ text: "b" }], why), () => {}), why);
  assert.deepEqual([broken.content, broken.finish_reason], ["b", "error"]);
});

/** A server with one conversation, a clock that moves when told, and a keeper between them. */
function world({ id = null, messages = [] } = {}) {
  const w = { time: 0, timers: new Map(), next: 1, states: [], requests: [], fail: null, keys: new Map(), loseAnswer: false,
              messages: [...messages], row: id && { id, version: 1, messages: [...messages], title: "" } };
  const answer = (work) => {
    if (w.fail) throw w.fail;
    const result = structuredClone(work());
    if (w.loseAnswer) throw Object.assign(new Error("away"), { status: 0 });
    return result;
  };
  const server = {
    async create(body, key, options) {
      w.requests.push({ create: body, key, ...options });
      return answer(() => {
        if (!w.keys.has(key)) w.keys.set(key, (w.row = { id: `c${w.keys.size}`, version: 1, title: "", ...structuredClone(body) }));
        return w.keys.get(key);
      });
    },
    async change(target, { version, ...body }, options) {
      w.requests.push({ change: body, version, ...options });
      await w.hold;
      return answer(() => {
        if (!w.row) throw Object.assign(new Error("gone"), { status: 404 });
        if (version !== undefined && version !== w.row.version) throw Object.assign(new Error("changed"), { status: 409 });
        Object.assign(w.row, structuredClone(body), { version: w.row.version + 1 });
        return w.row;
      });
    },
    async load() {
      await w.hold;
      return structuredClone(w.row);
    },
  };
  w.keeper = new Keeper({
    id, version: id ? 1 : null, server, newKey: () => `key${w.next++}`, onState: (state) => w.states.push(state),
    body: () => ({ checkpoint_id: "m", system: "", sampling: {}, messages: w.messages.map(plainMessage) }),
    clock: { setTimeout: (work, ms) => (w.timers.set(w.next, { at: w.time + ms, work }), w.next++),
             clearTimeout: (timer) => w.timers.delete(timer) },
  });
  if (w.row) Object.assign(w.row, w.keeper.body());
  w.pass = async (ms) => {
    w.time += ms;
    for (const [timer, { at, work }] of [...w.timers]) {
      if (at <= w.time) {
        w.timers.delete(timer);
        work();
      }
    }
    await settle();
  };
  return w;
}

async function settle() {
  for (let i = 0; i < 30; i += 1) await null;
}

const away = Object.assign(new Error("The studio does not answer."), { status: 0 });

test("the first message makes the conversation, later ones change it", async () => {
  const w = world();
  w.messages.push(user("a"));
  await w.keeper.now();
  assert.equal(w.keeper.id, "c0");
  w.messages.push(said("b"));
  await w.keeper.now();
  assert.deepEqual(w.row.messages.map((m) => m.content), ["a", "b"]);
  assert.equal(w.row.version, 2);
  assert.equal(w.keeper.isUnsaved, false);
  assert.equal(w.keeper.state, "kept");
});

test("while an answer grows it is saved every two seconds, and at its end", async () => {
  const w = world({ id: "c", messages: [user("a")] });
  const answer = said("", { finish_reason: null });
  w.messages.push(answer);
  for (let i = 0; i < 50; i += 1) { // 5 s
    answer.content += "x";
    w.keeper.soon();
    await w.pass(100);
  }
  assert.equal(w.requests.length, 2);
  assert.equal(w.row.messages[1].content.length, 40);
  await w.keeper.now();
  assert.equal(w.row.messages[1].content.length, 50);
  await w.pass(SAVE_EVERY_MS * 3);
  assert.equal(w.requests.length, 3, "nothing new, nothing sent");
});

test("requests never overlap, and what came meanwhile follows at once", async () => {
  const w = world({ id: "c" });
  let release;
  w.hold = new Promise((resolve) => (release = resolve));
  w.messages.push(user("a"));
  const first = w.keeper.now();
  w.messages.push(said("b"));
  await w.keeper.now();
  assert.equal(w.requests.length, 1);
  release();
  await first;
  await w.pass(0);
  assert.equal(w.row.messages.length, 2);
  assert.equal(w.row.version, 3);
});

test("a save that failed is tried again: by itself, and with the next change", async () => {
  const w = world();
  w.fail = away;
  w.messages.push(user("a"));
  await w.keeper.now();
  assert.deepEqual([w.keeper.state, w.keeper.error.message], ["failed", "The studio does not answer."]);
  await w.pass(TRY_AGAIN_MS);
  assert.equal(w.requests.length, 2);
  assert.equal(w.requests[0].key, w.requests[1].key, "the same request");
  w.fail = null;
  w.messages.push(said("b"));
  await w.keeper.now();
  await w.pass(0);
  assert.equal(w.keeper.state, "kept");
  assert.equal(w.keys.size, 1, "one conversation, whatever got lost");
  assert.deepEqual(w.row.messages.map((m) => m.content), ["a", "b"]);
});

test("a body that the server refuses is not sent again until it changes", async () => {
  const w = world({ id: "c" });
  w.fail = Object.assign(new Error("too long"), { status: 422 });
  w.messages.push(user("a"));
  await w.keeper.now();
  await w.pass(TRY_AGAIN_MS * 5);
  assert.equal(w.requests.length, 1);
  w.fail = null;
  await w.keeper.now();
  assert.equal(w.keeper.state, "kept");
});

test("an answer that was lost makes neither a second conversation nor a conflict", async () => {
  const w = world();
  w.loseAnswer = true;
  w.messages.push(user("a"));
  await w.keeper.now();
  assert.equal(w.keeper.id, null);
  w.loseAnswer = false;
  await w.pass(TRY_AGAIN_MS);
  assert.equal(w.keys.size, 1);
  w.loseAnswer = true;
  w.messages.push(said("b"));
  await w.keeper.now(); // arrives; nobody hears of it
  assert.equal(w.row.version, 2);
  w.loseAnswer = false;
  w.messages.push(user("c"));
  await w.keeper.now();
  await w.pass(0);
  assert.equal(w.keeper.state, "kept");
  assert.deepEqual(w.row.messages.map((m) => m.content), ["a", "b", "c"]);
});

test("another tab's change is a conflict that the reader decides", async () => {
  for (const choice of ["mine", "theirs"]) {
    const w = world({ id: "c", messages: [user("a")] });
    w.row.messages.push(said("from the other tab"));
    w.row.version = 5;
    w.messages.push(user("mine"));
    await w.keeper.now();
    assert.equal(w.keeper.state, "conflict");
    await w.keeper.now();
    assert.equal(w.requests.length, 1, "nothing is overwritten meanwhile");
    if (choice === "mine") {
      await w.keeper.keepMine();
      assert.deepEqual(w.row.messages.map((m) => m.content), ["a", "mine"]);
    } else {
      w.messages = w.keeper.takeTheirs().messages;
      assert.equal(w.messages[1].content, "from the other tab");
      assert.equal(w.keeper.isUnsaved, false);
      w.messages.push(user("on"));
      await w.keeper.now();
      assert.deepEqual(w.row.messages.map((m) => m.content), ["a", "from the other tab", "on"]);
    }
    assert.equal(w.keeper.state, "kept");
  }
});

test("a title that another tab changed is no conflict", async () => {
  const w = world({ id: "c", messages: [user("a")] });
  Object.assign(w.row, { version: 2, title: "Renamed" });
  w.messages.push(said("b"));
  await w.keeper.now();
  await w.pass(0);
  assert.deepEqual([w.keeper.state, w.row.title, w.row.messages.length], ["kept", "Renamed", 2]);
  await w.keeper.rename("Mine");
  assert.deepEqual([w.row.title, w.keeper.title], ["Mine", null]);
});

test("a page that is looked at again shows what another tab has kept meanwhile", async () => {
  const w = world({ id: "c", messages: [user("a")] });
  assert.equal(await w.keeper.refresh(), null, "nothing new");
  Object.assign(w.row, { version: 2, messages: [user("a"), said("b")] });
  w.keeper.soon();
  assert.equal(await w.keeper.refresh(), null, "what is not saved yet is not lost");
  w.row.version = 1;
  await w.pass(SAVE_EVERY_MS);
  Object.assign(w.row, { version: 9, messages: [user("a"), said("b")] });
  const theirs = await w.keeper.refresh();
  assert.deepEqual([theirs.messages.length, w.keeper.version, w.keeper.state], [2, 9, "kept"]);
  const gone = world({ id: "c" });
  gone.keeper.server.load = async () => {
    throw Object.assign(new Error("gone"), { status: 404 });
  };
  await gone.keeper.refresh();
  assert.equal(gone.keeper.state, "gone");
});

test("another tab's version is not taken while something is being written, also where that began meanwhile", async () => {
  const w = world({ id: "c", messages: [user("a")] });
  Object.assign(w.row, { version: 2, messages: [user("theirs")] });
  assert.equal(await w.keeper.refresh(() => true), null);
  let isAtWork = false;
  let release;
  w.hold = new Promise((resolve) => (release = resolve));
  const looking = w.keeper.refresh(() => isAtWork);
  isAtWork = true;
  release();
  assert.equal(await looking, null);
  assert.equal(w.keeper.version, 1, "so that a save finds the conflict");
  isAtWork = false;
  assert.equal((await w.keeper.refresh(() => isAtWork)).messages[0].content, "theirs");
});

test("what the page shows grows; what is known of the server does not", async () => {
  const w = world({ id: "c", messages: [user("a")] });
  Object.assign(w.row, { version: 2, messages: [user("theirs")] });
  w.messages = (await w.keeper.refresh()).messages;
  Object.assign(w.row, { version: 3, title: "Renamed" });
  w.messages.push(user("on"));
  await w.keeper.now();
  await w.pass(0);
  assert.deepEqual([w.keeper.state, w.row.messages.length], ["kept", 2]);
  const known = { id: "c", version: 1, checkpoint_id: "other", system: "s", sampling: { seed: 1 }, messages: [user("a")] };
  const keeper = new Keeper({ id: "c", version: 1, known, body: () => ({ messages: [] }) });
  known.messages.push(user("b"));
  assert.deepEqual([keeper.sent[0].system, keeper.sent[0].messages.length], ["s", 1]);
});

test("a title that was refused is given up by saving now", async () => {
  const w = world({ id: "c", messages: [user("a")] });
  w.fail = Object.assign(new Error("too long"), { status: 422 });
  await w.keeper.rename("x");
  assert.equal(w.keeper.state, "failed");
  await w.keeper.retry();
  assert.deepEqual([w.keeper.state, w.keeper.error, w.requests.length], ["kept", null, 1]);
});

test("a save that hangs has failed and is tried again", async () => {
  const w = world({ id: "c", messages: [user("a")] });
  w.fail = new DOMException("signal timed out", "TimeoutError");
  w.messages.push(user("b"));
  await w.keeper.now();
  assert.ok(w.requests[0].signal instanceof AbortSignal);
  assert.deepEqual([w.keeper.state, w.keeper.error.message], ["failed", "The studio does not answer."]);
  w.fail = null;
  await w.pass(TRY_AGAIN_MS);
  assert.deepEqual([w.keeper.state, w.row.messages.length], ["kept", 2]);
});

test("a page that is left overwrites no other tab's version", async () => {
  const w = world({ id: "c", messages: [user("a")] });
  let release;
  w.hold = new Promise((resolve) => (release = resolve));
  w.messages.push(user("b"));
  const saving = w.keeper.now();
  w.messages.push(user("c"));
  w.keeper.soon();
  w.keeper.leave();
  assert.deepEqual(w.requests.map((request) => request.version), [1, 1]);
  release();
  await saving;
});

test("a conversation that was deleted elsewhere comes back only if wanted", async () => {
  const w = world({ id: "c", messages: [user("a")] });
  w.row = null;
  await w.keeper.now();
  assert.equal(w.keeper.state, "gone");
  await w.keeper.now();
  w.keeper.leave();
  assert.equal(w.requests.length, 1);
  await w.keeper.keepAgain("Its title");
  await w.pass(SAVE_EVERY_MS);
  assert.deepEqual([w.keeper.id, w.row.title, w.keeper.title, w.requests.length], ["c0", "Its title", null, 2]);
  assert.deepEqual(w.row.messages.map((m) => m.content), ["a"]);
  w.keeper.end();
  await w.keeper.now();
  assert.equal(w.requests.length, 2);
});

test("a page that is left hands over what is not saved", async () => {
  const nothing = world({ id: "c" });
  nothing.keeper.leave();
  const fresh = world();
  fresh.keeper.leave();
  assert.equal(nothing.requests.length + fresh.requests.length, 0);

  const w = world({ id: "c", messages: [user("a")] });
  w.messages.push(said("half an ans", { finish_reason: null }));
  w.keeper.soon();
  w.keeper.leave();
  await settle();
  assert.deepEqual([w.requests[0].keepalive, w.row.messages.length], [true, 2]);
  w.keeper.leave();
  assert.equal(w.requests.length, 1, "nothing new since");
  w.messages[1].content += "wer"; // the page came back
  await w.keeper.now();
  await w.pass(0);
  assert.deepEqual([w.keeper.state, w.row.messages[1].content], ["kept", "half an answer"]);

  const long = world({ id: "c", messages: [user("ä".repeat(40_000))] });
  long.keeper.soon();
  long.keeper.leave();
  assert.equal(long.requests[0].keepalive, false, "browsers refuse so much");

  const first = world();
  first.messages.push(user("a"));
  first.fail = away;
  await first.keeper.now();
  first.fail = null;
  first.keeper.leave();
  await settle();
  assert.equal(first.keys.size, 1);
});

test("what the server sends back is the same as what was sent", () => {
  const mine = { checkpoint_id: "m", system: "", sampling: { temperature: 1 }, messages: [plainMessage(said("a"))] };
  const theirs = { id: "c", version: 3, title: "t", checkpoint_id: "m", system: "", sampling: { seed: null, temperature: 1 },
                   messages: [{ ...said("a"), usage: null, created_at: null, checkpoint_id: null }] };
  assert.ok(isSame(mine, theirs));
  assert.ok(!isSame(mine, { ...theirs, system: "x" }));
  assert.ok(!isSame(mine, { ...theirs, messages: [] }));
});

test("adapters that fit a model are offered, those that were trained on it first", () => {
  const model = (id, fits) => ({ id, fits, is_adapter: false });
  const adapter = (id, fits, base) => ({ id, fits, is_adapter: true, base_checkpoint_id: base });
  const all = [model("m", "f"), adapter("theirs", "f", "other"), adapter("wide", "g", "m"), adapter("own", "f", "m")];
  const offered = (of) => adaptersFor(of, all).map(({ id }) => id);
  assert.deepEqual(offered(all[0]), ["own", "theirs"]);
  assert.deepEqual(offered(all[1]), [], "one with an adapter of its own takes no second one");
  assert.deepEqual(offered(model("far", null)), [], "its files are elsewhere: nobody knows");
  assert.equal(modelId("m", "own"), "m+own");
  assert.equal(modelId("m", null), "m");
});

test("another adapter is another conversation", () => {
  const body = { checkpoint_id: "m", adapter_checkpoint_id: null, messages: [said("a")] };
  assert.ok(isSame(body, { checkpoint_id: "m", messages: [said("a")] }));
  assert.ok(!isSame(body, { ...body, adapter_checkpoint_id: "a" }));
  assert.ok(!isSame(body, { ...body, messages: [said("a", { adapter_checkpoint_id: "a" })] }));
  assert.equal(plainMessage(said("a", { adapter_checkpoint_id: "a" })).adapter_checkpoint_id, "a");
});
