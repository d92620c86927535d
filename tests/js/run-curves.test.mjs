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
