import assert from "node:assert/strict";
import { test } from "node:test";
import { fitting, placeOf, stagesOf } from "../../static/js/lib/pipeline-stages.js";

test("only what was filled in is sent, and a preset only where a model begins", () => {
  const rows = [
    { stage: "tokenizer", dataset: "d1", minutes: "3", preset: "tiny-cpu", gate: "" },
    { stage: "pretrain", dataset: "", minutes: "2.5", preset: "small-cpu", gate: "3.1" },
    { stage: "sft", dataset: "d2", minutes: "", preset: "small-cpu", gate: "2" },
  ];
  assert.deepEqual(stagesOf(rows), [
    { stage: "tokenizer", dataset_id: "d1", config: {} },
    { stage: "pretrain", config: { max_minutes: 2.5, preset: "small-cpu" }, gate: { eval_loss: 3.1 } },
    { stage: "sft", dataset_id: "d2", config: {} },
  ]);
});

test("a problem finds its field", () => {
  assert.deepEqual(placeOf("stages.1.config.max_minutes"), { row: 1, name: "minutes" });
  assert.deepEqual(placeOf("stages.0.dataset_id"), { row: 0, name: "dataset" });
  assert.deepEqual(placeOf("stages.2.gate.eval_loss"), { row: 2, name: "gate" });
  assert.deepEqual(placeOf("stages.2.config.seed"), { row: 2, name: "stage" });
  assert.deepEqual(placeOf("name"), { row: null, name: "name" });
  assert.equal(placeOf(null), null);
});

test("a stage is offered the data that it can learn from", () => {
  const data = [{ id: "a", layout: "text" }, { id: "b", layout: "conversations" }];
  assert.deepEqual(fitting(data, { layouts: ["text", "txt"] }), [data[0]]);
});
