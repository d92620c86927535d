import assert from "node:assert/strict";
import { test } from "node:test";

import { absent, changes, outwards, picture, Traveller } from "../../static/js/lib/travel.js";

const POINTS = Array.from({ length: 5 }, (_, place) => ({ id: `c${place}`, run_id: place < 2 ? "pre" : "sft", eval_loss: 5 - place }));
const tick = () => new Promise((resolve) => setImmediate(resolve));

/** Answers when `go(id)` is called, with an error where one is given. */
function models() {
  const asked = [];
  const waiting = new Map();
  const ask = async (point, request, answer, { signal, onPart }) => {
    asked.push(point.id);
    const error = await new Promise((resolve) => {
      waiting.set(point.id, resolve);
      signal.addEventListener("abort", () => resolve(null));
    });
    answer.content = `${request.prompt} ${point.id}`;
    onPart();
    return error;
  };
  const go = async (id, error = null) => {
    waiting.get(id)(error);
    await tick();
  };
  return { ask, asked, go };
}

test("the nearest are asked first, the one ahead before the one behind", () => {
  assert.deepEqual(outwards(5, 2), [2, 3, 1, 4, 0]);
  assert.deepEqual(outwards(3, 2), [2, 1, 0]);
});

test("a few are asked at a time, from where the reader is", async () => {
  const rig = models();
  const made = new Traveller({ points: POINTS, ask: rig.ask });
  made.moveTo(2);
  made.start({ prompt: "Who?" });
  assert.deepEqual(rig.asked, ["c2", "c3"]);
  made.moveTo(0);
  await rig.go("c3");
  assert.deepEqual(rig.asked, ["c2", "c3", "c0"]);
  assert.deepEqual(made.results.map(({ state }) => state), ["asking", "waiting", "asking", "answered", "waiting"]);
  assert.equal(made.results[3].answer.content, "Who? c3");
  for (const id of ["c2", "c0", "c1", "c4"]) await rig.go(id);
  assert.ok(!made.isBusy && made.answered === 5);
});

test("what was answered is not asked again", async () => {
  const rig = models();
  const made = new Traveller({ points: POINTS.slice(0, 2), ask: rig.ask });
  made.start({ prompt: "One?" });
  await rig.go("c1");
  made.start({ prompt: "Two?" }); // before c0 has answered
  await rig.go("c1");
  await rig.go("c0");
  made.start({ prompt: "One?" });
  assert.deepEqual(made.results.map(({ state }) => state), ["asking", "answered"]);
  await rig.go("c0");
  assert.equal(made.results[0].answer.content, "One? c0");
  assert.deepEqual(rig.asked, ["c1", "c0", "c1", "c0", "c0"]);
});

test("one that was deleted is left out, for the next prompt too", async () => {
  const rig = models();
  const made = new Traveller({ points: POINTS.slice(0, 2), ask: rig.ask });
  made.start({ prompt: "One?" });
  await rig.go("c1", { status: 404, message: "no" });
  await rig.go("c0", { status: 400, message: "It is too long." });
  assert.deepEqual(made.results.map(({ state }) => state), ["failed", "gone"]);
  assert.deepEqual(made.results.map(absent), ["It is too long.", "This checkpoint was deleted meanwhile."]);
  made.start({ prompt: "Two?" });
  assert.deepEqual(rig.asked, ["c1", "c0", "c0"]);
  await rig.go("c0", { status: 200, code: "checkpoint_unusable", message: "damaged" });
  assert.deepEqual(made.results.map(({ state }) => state), ["gone", "gone"]);
});

test("a busy model is asked again, and where nobody answers nobody else is asked", async () => {
  const rig = models();
  const later = [];
  const clock = { setTimeout: (work, ms) => later.push([work, ms]), clearTimeout: () => {} };
  const made = new Traveller({ points: POINTS, ask: rig.ask, atOnce: 1, clock });
  made.start({ prompt: "One?" });
  await rig.go("c4", { status: 429, retryAfter: 3, message: "busy" });
  assert.deepEqual([rig.asked, later[0][1]], [["c4"], 3000]);
  later[0][0]();
  await rig.go("c4", { status: 503, message: "It does not run." });
  assert.deepEqual([rig.asked, made.problem.message, made.isBusy], [["c4", "c4"], "It does not run.", false]);
});

test("words that were not there before are news", () => {
  const marked = (before, after) => changes(before, after).map(({ text, isNew }) => (isNew ? `[${text}]` : text)).join("");
  assert.equal(marked("The cat sat here.", "The dog sat there."), "The [dog ]sat [there].");
  assert.equal(marked("我有一只猫", "我有一只狗"), "我有一只[狗]");
  assert.equal(marked("", "all of it"), "all of it", "nothing to compare with");
  assert.equal(marked("same", "same"), "same");
  assert.equal(changes("a ".repeat(2000), "b ".repeat(2000)).length, 1, "too long to compare");
});

test("points stand evenly, and each run has a line of its own", () => {
  const { dots, lines, gaps } = picture([...POINTS.slice(0, 3), { id: "x", run_id: "sft", eval_loss: null }], 320, 100, 10);
  assert.deepEqual(dots.map(({ x }) => x), [10, 110, 210, 310]);
  assert.deepEqual(dots.map(({ y }) => y), [10, 50, 90, 90], "a high loss stands high");
  assert.deepEqual(lines.map((line) => [line.run_id, line.points.length]), [["pre", 2], ["sft", 1]]);
  assert.deepEqual(gaps, [160]);
  assert.deepEqual(picture([{ ...POINTS[0], eval_loss: null }], 320, 100, 10).dots, [{ x: 160, y: 90 }]);
});

test("a journey goes on where it was left, and asks nobody twice", async () => {
  const rig = models();
  const made = new Traveller({ points: POINTS, ask: rig.ask });
  made.moveTo(1);
  made.start({ prompt: "Who?" });
  await rig.go("c1");
  const kept = structuredClone(made.snapshot);
  made.stop();

  const again = new Traveller({ points: [...POINTS, { id: "c5", run_id: "sft", eval_loss: null }], ask: rig.ask });
  rig.asked.length = 0;
  again.restore(kept);
  assert.deepEqual([again.at, again.isBusy, again.results[1].answer.content], [1, true, "Who? c1"]);
  assert.deepEqual(rig.asked, ["c2", "c0"]);
  again.stop();

  const stopped = new Traveller({ points: POINTS, ask: rig.ask });
  stopped.restore(structuredClone(made.snapshot));
  assert.deepEqual([stopped.isBusy, stopped.answered, stopped.request.prompt], [false, 1, "Who?"]);
  const fresh = new Traveller({ points: POINTS, ask: rig.ask });
  fresh.restore(new Traveller({ points: POINTS, ask: rig.ask }).snapshot);
  assert.deepEqual([fresh.request, fresh.results], [null, []], "nothing was asked");
});
