import assert from "node:assert/strict";
import { test } from "node:test";

import { answerTurn, Column, Comparison, seedOf, thread } from "../../static/js/lib/compare.js";

/** Answers word by word; `held` names models that wait until `go(model)` is called. */
function models(answers = {}, held = []) {
  const asked = [];
  const waiting = new Map();
  async function* complete(path, body, { signal }) {
    asked.push({ path, body });
    yield { open: true };
    const text = answers[body.model] ?? `${body.model} says ${asked.length}`;
    if (text instanceof Error) throw text;
    for (const word of text.split(/(?<= )/)) {
      if (held.includes(body.model)) {
        await new Promise((resolve, reject) => {
          waiting.set(body.model, resolve);
          signal.addEventListener("abort", () => reject(new DOMException("stopped", "AbortError")));
        });
      }
      yield { text: word };
    }
    yield { finish_reason: "stop" };
    yield { usage: { prompt_tokens: 3, completion_tokens: text.split(" ").length } };
  }
  return { complete, asked, go: (model) => waiting.get(model)() };
}

function comparison(ids, rig, settings = {}, more = {}) {
  const asked = { mode: "auto", system: "", sampling: {}, seed: null, isSameSeed: true, ...settings };
  return new Comparison({ columns: ids.map((id) => new Column(...id.split("+"))), complete: rig.complete, settings: () => asked,
                          continuesText: ({ model }) => model.startsWith("pre"), random: () => 0.75, ...more });
}

const tick = () => new Promise((resolve) => setImmediate(resolve));

test("every column answers the shared turns in its own thread", async () => {
  const rig = models({ a: "yes", "b+l": "no" });
  const made = comparison(["a", "b+l"], rig, { system: "Be kind.", sampling: { temperature: 0.5 } });
  await made.say("One?");
  await made.say("Two?");
  assert.deepEqual(rig.asked.map(({ body }) => body.model), ["a", "b+l", "a", "b+l"]);
  assert.deepEqual(rig.asked[3].body.messages.map(({ role, content }) => `${role}: ${content}`), [
    "system: Be kind.", "user: One?", "assistant: no", "user: Two?"]);
  assert.equal(rig.asked[3].body.temperature, 0.5);
  assert.equal(rig.asked[2].body.seed, rig.asked[3].body.seed, "one seed for all");
  assert.ok(made.columns[0].answers[1].firstMs >= 0 && made.columns[0].answers[1].usage.completion_tokens === 1);
});

test("columns answer at the same time, and all of them can be stopped", async () => {
  const rig = models({ a: "one two three", b: "four five" }, ["a", "b"]);
  const made = comparison(["a", "b"], rig);
  const done = made.say("Well?");
  await tick();
  rig.go("b");
  await tick();
  assert.deepEqual(made.columns.map(({ answers }) => answers[0].content), ["", "four "]);
  assert.ok(made.isBusy && !made.canVote);
  made.stop();
  await done;
  assert.deepEqual(made.columns.map(({ answers, isStopped }) => [answers.length, isStopped]), [[0, true], [1, true]]);
  assert.ok(!made.isBusy && !made.canVote, "half an answer is not voted on");
  const again = made.catchUp();
  for (let n = 0; n < 3; n += 1) {
    await tick();
    rig.go("a");
    if (n < 2) rig.go("b");
  }
  await again;
  assert.deepEqual(made.columns.map(({ answers }) => answers.map(({ content }) => content)), [["one two three"], ["four five"]]);
  assert.ok(made.canVote);
});

test("one that fails is tried again by itself", async () => {
  const answers = { a: "fine", b: new Error("gone") };
  const rig = models(answers);
  const made = comparison(["a", "b"], rig);
  await made.say("Well?");
  assert.deepEqual([made.columns[1].error.message, made.columns[1].answers.length, made.canVote], ["gone", 0, false]);
  answers.b = "here";
  await made.catchUp([made.columns[1]]);
  assert.deepEqual([made.columns[1].error, made.columns[1].answers[0].content, rig.asked.length], [null, "here", 3]);
});

test("a model that comes later answers everything that was asked", async () => {
  const rig = models({ c: "late" });
  const made = comparison(["a", "b"], rig);
  await made.say("One?");
  await made.say("Two?");
  const [first] = made.columns;
  await made.put(null, "c");
  assert.deepEqual(made.columns.map(({ id }) => id), ["a", "b", "c"]);
  assert.deepEqual(made.columns[2].answers.map(({ content }) => content), ["late", "late"]);
  assert.ok(!made.canVote, "a vote is between two");
  await made.put(first, "d");
  made.remove(made.columns[1]);
  assert.deepEqual(made.columns.map(({ id, answers }) => [id, answers.length]), [["d", 2], ["c", 2]]);
  assert.ok(made.canVote);
});

test("a model that only continues text is asked to", async () => {
  const rig = models();
  const made = comparison(["pre", "a"], rig);
  await made.say("The ferry");
  assert.deepEqual(rig.asked.map(({ path }) => path), ["/v1/completions", "/v1/chat/completions"]);
  assert.equal(rig.asked[0].body.prompt, "The ferry");
});

test("two answers of one model have different seeds", () => {
  const columns = ["a", "b", "a"].map((id) => new Column(id));
  assert.deepEqual(columns.map((column) => seedOf(columns, column, 7, true)), [7, 7, 8]);
  assert.deepEqual(columns.map((column) => seedOf(columns, column, 7, false)), [7, 8, 9]);
});

test("other answers have another seed unless one is set", async () => {
  let drawn = 0.1;
  const rig = models();
  const made = comparison(["a", "b"], rig, {}, { random: () => (drawn += 0.1) });
  await made.say("Well?");
  await made.again();
  assert.equal(new Set(rig.asked.map(({ body }) => body.seed)).size, 2);
  const fixed = models();
  const second = comparison(["a", "b"], fixed, { seed: 5 });
  await second.say("Well?");
  await second.again();
  assert.deepEqual(fixed.asked.map(({ body }) => body.seed), [5, 5, 5, 5]);
});

test("who is who is mixed and hidden until the vote", async () => {
  let drawn = 0.4;
  const rig = models();
  const made = comparison(["a", "b"], rig, {}, { random: () => drawn });
  made.isBlind = true;
  made.begin();
  assert.deepEqual(made.columns.map(({ id }) => id), ["b", "a"]);
  await made.say("Well?");
  assert.ok(made.isHidden);
  assert.ok(made.voteBody("a").is_blind);
  made.keep({ id: "v" });
  assert.ok(!made.isHidden && !made.canVote);
  made.takeBack();
  assert.ok(!made.isHidden && made.canVote && !made.voteBody("a").is_blind, "what was seen is known");
  await made.again();
  assert.deepEqual([made.columns.map(({ id }) => id), made.isHidden, made.turns], [["a", "b"], true, ["Well?"]]);
  made.keep({ id: "w" });
  drawn = 0.9;
  await made.say("And this?");
  assert.deepEqual([made.turns, made.vote, made.isHidden], [["And this?"], null, true]);
});

test("a vote holds the prompt and what each said behind it", async () => {
  const answers = { a: "<think>hm</think>Same.", b: "<think>hm</think>Same." };
  const made = comparison(["a", "b"], models(answers), { system: "Be kind.", sampling: { top_p: 0.9 } });
  await made.say("One?");
  Object.assign(answers, { a: "Yes.", b: "No." });
  await made.say("Two?");
  const body = made.voteBody("b");
  assert.deepEqual(body.messages, [
    { role: "system", content: "Be kind." }, { role: "user", content: "One?" },
    { role: "assistant", content: "Same.", reasoning_content: "hm" }, { role: "user", content: "Two?" }]);
  assert.deepEqual(body.answers.map((answer) => answer.messages), [
    [{ role: "assistant", content: "Yes." }], [{ role: "assistant", content: "No." }]]);
  assert.deepEqual([body.verdict, body.is_blind, body.answers[0].checkpoint_id, body.answers[0].sampling.top_p], ["b", false, "a", 0.9]);
  await made.say("Three?");
  assert.deepEqual(made.voteBody("a").answers[1].messages.map(({ content }) => content), ["No.", "Three?", "No."]);
});

test("of continued texts the last one counts", async () => {
  const made = comparison(["pre1", "pre2"], models({ pre1: " left", pre2: " sank" }), { system: "x" });
  await made.say("First");
  await made.say("The ferry");
  const body = made.voteBody("tie");
  assert.deepEqual(body.messages, [{ role: "user", content: "The ferry" }]);
  assert.deepEqual(body.answers.map(({ mode, messages }) => [mode, messages.length, messages[0].content]), [["text", 1, " left"], ["text", 1, " sank"]]);
});

test("thoughts stay with the answer", async () => {
  async function* complete() {
    yield { reasoning: "Let me " };
    yield { reasoning: "see." };
    yield { text: "Yes." };
    yield { finish_reason: "stop" };
  }
  const made = comparison(["a", "b"], { complete });
  await made.say("Well?");
  const [answer] = made.columns[0].answers;
  assert.deepEqual([answer.reasoning, answer.content], ["Let me see.", "Yes."]);
  assert.deepEqual(thread(["Well?", "So?"], [answer])[1], { role: "assistant", content: "Yes.", reasoning: "Let me see." });
  assert.deepEqual(made.voteBody("a").answers[0].messages, [{ role: "assistant", content: "Yes.", reasoning_content: "Let me see." }]);
});

test("a thread ends with the turn that is to be answered", () => {
  assert.deepEqual(thread(["One?", "Two?"], []), [{ role: "user", content: "One?" }]);
  assert.deepEqual(answerTurn({ content: "x", reasoning: "why" }, "chat"), { role: "assistant", content: "x", reasoning_content: "why" });
});

test("a comparison that was kept is shown again, and who was answering is asked the same again", async () => {
  const rig = models({ a: "one two", b: "three four" }, ["b"]);
  const made = comparison(["a", "b"], rig);
  const done = made.say("Well?");
  await tick();
  rig.go("b");
  await tick();
  const kept = JSON.parse(JSON.stringify(made.snapshot));
  made.stop();
  await done;
  assert.deepEqual(kept.columns.map(({ answers, isAsked }) => [answers.map(({ content }) => content), isAsked]), [[["one two"], false], [[], true]]);

  const other = models({ b: "three four" });
  const again = comparison(["x", "y"], other);
  await again.restore(kept);
  assert.deepEqual(again.turns, ["Well?"]);
  assert.deepEqual(again.columns.map(({ id, answers }) => [id, answers[0].content]), [["a", "one two"], ["b", "three four"]]);
  assert.deepEqual(other.asked, [rig.asked[1]], "with the same seed");
  assert.ok(again.canVote);
});

test("a blind comparison is still one when it comes back, with everybody in his place", async () => {
  const made = comparison(["a", "b"], models(), {}, { random: () => 0.25 });
  made.isBlind = true;
  made.begin();
  await made.say("Well?");
  const again = comparison(["a", "b"], models());
  await again.restore(structuredClone(made.snapshot));
  assert.deepEqual([again.columns.map(({ id }) => id), again.isHidden, again.canVote], [["b", "a"], true, true]);
  again.keep({ id: "v", verdict: "a" });
  const third = comparison(["a", "b"], models());
  await third.restore(structuredClone(again.snapshot));
  assert.deepEqual([third.isHidden, third.vote.id], [false, "v"]);
});
