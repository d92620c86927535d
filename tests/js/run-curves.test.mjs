import assert from "node:assert/strict";
import { test } from "node:test";
import { Curve } from "../../static/js/lib/curves.js";
import { chartsOf, KINDS, newest } from "../../static/js/lib/run-curves.js";

const names = (keys) => chartsOf(keys).map(({ name, charts }) => [name, charts.map((chart) => chart.name)]);
const ALWAYS = ["loss", "speed", "learning-rate", "gradient-norm"];
// as minimind/trainer.py, speed.py and evaluation.py write them
const DENSE = ["loss", "lr", "grad_norm", "epoch", "tokens_per_s", "mfu", "data_wait_share", "memory_peak_bytes", "learnt_share"];
const EVAL = ["eval_loss", "perplexity", "bits_per_byte"];

function curve(y, smoothing = 0.5) {
  const made = new Curve(smoothing);
  y.forEach((value, step) => made.append(step + 1, value));
  return made;
}

test("a chart is there once the run has its number, and the first four at once", () => {
  assert.deepEqual(names([]), [["first", ALWAYS]]);
  assert.deepEqual(names(DENSE), [["first", ALWAYS], ["machine", ["mfu", "memory"]], ["data", ["data-wait", "learnt-share"]]]);
  const all = names([...DENSE, ...EVAL, "balance_loss", "expert_load_max"]);
  assert.deepEqual(all.map(([name]) => name), ["first", "held-out", "experts", "machine", "data"]);
  assert.deepEqual(names(["mfu"])[1], ["machine", ["mfu"]], "a group without its other numbers");
});

// as minimind/objectives.py writes them
const PREFERENCE = ["reward_accuracy", "reward_margin", "reward_chosen", "reward_rejected", "logp_chosen", "logp_rejected"];
const DPO = [...DENSE, ...PREFERENCE, "eval_loss", ...PREFERENCE.map((key) => `eval_${key}`)];
const DISTILL = [...DENSE, ...EVAL, "ce_loss", "kl_loss", "eval_kl"];

test("a stage with a loss of its own shows it first, from the beginning", () => {
  const firstOf = (stage) => chartsOf([], stage)[0].charts.map(({ name }) => name);
  const rest = ALWAYS.slice(1);
  assert.deepEqual(firstOf("dpo"), ["loss", "reward-accuracy", "reward-margin", "rewards", ...rest]);
  assert.deepEqual(firstOf("distill"), ["loss", "cross-entropy", "teacher-distance", ...rest]);
  assert.deepEqual(firstOf("lora"), ALWAYS);
  assert.deepEqual(chartsOf(DPO, "dpo").map(({ name }) => name), ["first", "answers", "machine", "data"]);
  assert.deepEqual(chartsOf(DISTILL, "distill").map(({ name }) => name), ["first", "held-out", "machine", "data"]);
  const [loss] = chartsOf(DISTILL, "distill")[0].charts;
  assert.equal(loss.keys.includes("eval_loss"), false, "a student's held-out loss is another one than it is trained on");
  assert.equal(chartsOf([], "dpo")[0].charts[1].kind, "rate");
  for (const [keys, stage] of [[DPO, "dpo"], [DISTILL, "distill"]]) {
    for (const { name, help, keys: its, series } of chartsOf(keys, stage).flatMap(({ charts }) => charts)) {
      assert.ok(help.endsWith("."), name);
      assert.equal(its.length, series.length, name);
    }
  }
});

test("a closed group names the line whose value it says", () => {
  const answers = chartsOf(DPO, "dpo").find(({ name }) => name === "answers");
  assert.equal(newest(answers.charts, new Map([["logp_chosen", curve([-20], 0)]])), "chosen -20");
});

test("a number that no chart knows gets one of its own", () => {
  assert.deepEqual(names(["reward", "epoch", "eval_loss", "kl"]).at(-1), ["more", ["kl", "reward"]]);
});

test("every chart explains itself and has one key for each line", () => {
  const charts = chartsOf([...DENSE, ...EVAL, "balance_loss", "expert_load_max"]).flatMap((group) => group.charts);
  assert.equal(new Set(charts.map(({ name }) => name)).size, charts.length);
  for (const { name, help, keys, series, kind } of charts) {
    assert.ok(help.endsWith("."), name);
    assert.equal(keys.length, series.length, name);
    assert.ok(kind === undefined || kind in KINDS, name);
  }
});

test("the line of a closed group says the newest finite values, of noisy numbers the average", () => {
  const [, machine] = chartsOf(["mfu", "memory_peak_bytes"]);
  const curves = new Map([["mfu", curve([0.1, 0.2, null])], ["memory_peak_bytes", curve([4e8, 5e8])]]);
  // (0.5 * 0.1 * 0.5 + 0.5 * 0.2) / (1 - 0.5^2)
  assert.equal(newest(machine.charts, curves), "MFU 16.7 % · peak memory 500 MB");
  const [, experts] = chartsOf(["expert_load_max"]);
  assert.equal(newest(experts.charts, new Map([["expert_load_max", curve([2.5])]])), "busiest expert 2.5×");
});
