import assert from "node:assert/strict";
import { test } from "node:test";
import { beginsModel, fitting, partValue, placeOf, stagesOf } from "../../static/js/lib/pipeline-stages.js";

test("only what was filled in is sent, and a preset only where a model begins", () => {
  const rows = [
    { stage: "tokenizer", dataset: "d1", minutes: "3", preset: "tiny-cpu", gate: "" },
    { stage: "pretrain", dataset: "", minutes: "2.5", preset: "small-cpu", gate: "3.1" },
    { stage: "sft", dataset: "d2", minutes: "", preset: "small-cpu", gate: "2" },
  ];
  assert.deepEqual(stagesOf(rows), [
    { stage: "tokenizer", dataset_id: "d1", config: {} },
    { stage: "pretrain", config: { max_minutes: 2.5, preset: "small-cpu" }, gate: { eval_loss: 3.1 } },
    { stage: "sft", dataset_id: "d2", config: {}, gate: { eval_loss: 2 } },
  ]);
});

test("stages that learn from the starter corpus learn of one world", () => {
  assert.deepEqual(stagesOf([{ stage: "pretrain", dataset: "", minutes: "2" }, { stage: "sft", dataset: partValue("tools"), minutes: "1.5" },
    { stage: "dpo", dataset: "d1", minutes: "9", gate: "0.9" }]), [
    { stage: "pretrain", config: { starter_minutes: 3.5, max_minutes: 2 } },
    { stage: "sft", config: { starter: "tools", starter_minutes: 3.5, max_minutes: 1.5 } },
    { stage: "dpo", dataset_id: "d1", config: { max_minutes: 9 }, gate: { reward_accuracy: 0.9 } },
  ]);
});

test("a student begins anew and names its teacher", () => {
  const rows = [{ stage: "tokenizer", dataset: "", from: "" }, { stage: "pretrain", dataset: "", from: "" },
    { stage: "pretrain", dataset: "", from: "-1", preset: "tiny-cpu" }, { stage: "distill", dataset: "", from: "", teacher: "1", preset: "tiny-cpu" }];
  assert.deepEqual(rows.map((_, place) => beginsModel(rows, place)), [false, true, true, false]);
  assert.deepEqual(stagesOf(rows).slice(2), [
    { stage: "pretrain", from_stage: -1, config: { preset: "tiny-cpu" } }, { stage: "distill", teacher_stage: 1, config: {} }]);
});

test("a problem finds its field", () => {
  assert.deepEqual(placeOf("stages.1.config.max_minutes"), { row: 1, name: "minutes" });
  assert.deepEqual(placeOf("stages.0.dataset_id"), { row: 0, name: "dataset" });
  assert.deepEqual(placeOf("stages.2.gate.eval_loss"), { row: 2, name: "gate" });
  assert.deepEqual(placeOf("stages.2.config.seed"), { row: 2, name: "stage" });
  assert.deepEqual(placeOf("stages.3.teacher_stage"), { row: 3, name: "teacher" });
  assert.deepEqual(placeOf("name"), { row: null, name: "name" });
  assert.equal(placeOf(null), null);
});

test("a stage is offered the data that it can learn from", () => {
  const data = [{ id: "a", layout: "text" }, { id: "b", layout: "conversations" }];
  assert.deepEqual(fitting(data, { layouts: ["text", "txt"] }), [data[0]]);
});
