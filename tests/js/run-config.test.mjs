import assert from "node:assert/strict";
import { test } from "node:test";

import { commandLine, fieldOf, hasIds, isChanged, parsed, problemsOf, query, request } from "../../static/js/lib/run-config.js";
import { gpuMemory, memoryParts, outlook, ownNeeds, parameterParts, work } from "../../static/js/lib/run-outlook.js";

const BUDGETS = { passes: ["epochs"], minutes: ["max_minutes"], steps: ["max_steps"], both: ["max_minutes", "max_steps"] };
const SPECS = [
  { name: "preset", kind: "choice", default: "auto" },
  { name: "epochs", kind: "integer", default: "1" },
  { name: "max_steps", kind: "integer", default: "" },
  { name: "max_minutes", kind: "number", default: "" },
  { name: "batch_size", kind: "integer", default: "" },
  { name: "learning_rate", kind: "number", default: "" },
  { name: "grad_clip", kind: "number", default: "1" },
  { name: "use_wandb", kind: "flag", default: "0" },
  { name: "use_compile", kind: "switch", default: "" },
  { name: "languages", kind: "choices", default: "" },
  { name: "wandb_project", kind: "text", default: "" },
];
const state = (values = {}, rest = {}) => ({
  stage: "pretrain", name: "", dataset_id: "", base_checkpoint_id: "", devices: "auto", ranks: "1", priority: "0",
  tags: "", notes: "", budget: "passes", values, ...rest,
});
const asked = (values, rest) => request(state(values, rest), SPECS, BUDGETS);

test("an untouched form sends nothing but its stage", () => {
  const untouched = Object.fromEntries(SPECS.map((spec) => [spec.name, spec.default]));
  assert.deepEqual(asked(untouched), { body: { stage: "pretrain", config: {} }, problems: [] });
});

test("values have JSON's own types, and defaults are not sent", () => {
  const { body, problems } = asked({ preset: "tiny-cpu", batch_size: " 8 ", learning_rate: "1e-3", grad_clip: "1.0",
                                     use_wandb: "1", use_compile: "0", languages: "en,zh", wandb_project: " mine ",
                                     epochs: "1" });
  assert.deepEqual(problems, []);
  assert.deepEqual(body.config, { preset: "tiny-cpu", batch_size: 8, learning_rate: 0.001, use_wandb: true,
                                  use_compile: false, languages: ["en", "zh"], wandb_project: "mine" });
});

test("what JSON could not say is a problem beside its field", () => {
  for (const [name, text] of [["batch_size", "eight"], ["batch_size", "1.5"], ["batch_size", "1,000"], ["batch_size", "0x10"],
                              ["learning_rate", "0,001"], ["learning_rate", "Infinity"], ["learning_rate", "1e999"],
                              ["learning_rate", "1e"], ["batch_size", "99999999999999999999"]]) {
    const { body, problems } = asked({ [name]: text });
    assert.deepEqual(problems.map((p) => p.field), [name], text);
    assert.deepEqual(body.config, {}, text);
  }
  assert.match(parsed(SPECS[5], "0,001").problem.hint, /0\.001/);
  assert.match(parsed(SPECS[4], "1,000").problem.hint, /1000/);
  assert.equal(parsed(SPECS[4], "1e3").value, 1000);
  assert.equal(parsed(SPECS[5], ".5").value, 0.5);
  assert.equal(parsed(SPECS[5], "-1").value, -1);
});

test("bounds are said at once", () => {
  const said = (bounds, text) => parsed({ kind: "number", bounds }, text).problem?.message ?? null;
  assert.match(said({ low: 1 }, "0"), /at least 1/);
  assert.match(said({ above: 0 }, "0"), /more than 0/);
  assert.match(said({ high: 10 }, "10.5"), /at most 10/);
  assert.match(said({ below: 1 }, "1"), /less than 1/);
  assert.equal(said({ low: 1, high: 2 }, "2"), null);
});

test("only the chosen budget is sent, and it must say how much", () => {
  const all = { epochs: "3", max_steps: "60", max_minutes: "2.5" };
  assert.deepEqual(asked(all).body.config, { epochs: 3 });
  assert.deepEqual(asked(all, { budget: "minutes" }).body.config, { max_minutes: 2.5 });
  assert.deepEqual(asked(all, { budget: "steps" }).body.config, { max_steps: 60 });
  assert.deepEqual(asked(all, { budget: "both" }).body.config, { max_steps: 60, max_minutes: 2.5 });
  assert.deepEqual(asked({}, { budget: "both" }).problems.map((p) => p.field), ["max_steps", "max_minutes"]);
});

test("what is around the options", () => {
  const { body } = asked({}, { name: " a ", dataset_id: "d1", base_checkpoint_id: "c1", priority: "-2", tags: "x, ,y",
                               notes: " why ", devices: "cpu", ranks: "2" });
  assert.deepEqual(body, { stage: "pretrain", name: "a", config: {}, dataset_id: "d1", base_checkpoint_id: "c1",
                           devices: { kind: "cpu", count: 2 }, priority: -2, tags: ["x", "y"], notes: "why" });
  assert.deepEqual(asked({}, { devices: "cuda:0,cuda:1" }).body.devices, ["cuda:0", "cuda:1"]);
  assert.deepEqual(asked({}, { devices: "cuda", ranks: "" }).body.devices, { kind: "cuda", count: 1 });
  assert.deepEqual(asked({}, { devices: "cpu", ranks: "two", priority: "high" }).problems.map((p) => p.field),
                   ["devices", "priority"]);
});

test("a stage that needs a checkpoint says so before it asks anybody", () => {
  const needed = { stage: "distill", needed: ["teacher_checkpoint_id"] };
  const { body, problems } = asked({}, needed);
  assert.deepEqual(problems, [{ field: "teacher_checkpoint_id", message: "Choose a teacher", hint: "", isMissing: true, isUnchosen: true }]);
  assert.deepEqual(body, { stage: "distill", config: {} });
  const chosen = asked({}, { ...needed, teacher_checkpoint_id: "t1", base_checkpoint_id: "c1" });
  assert.deepEqual(chosen, { body: { stage: "distill", config: {}, base_checkpoint_id: "c1", teacher_checkpoint_id: "t1" }, problems: [] });
  assert.equal(hasIds(chosen.body), true);
  assert.equal(query(state({}, { ...needed, teacher_checkpoint_id: "t1" }), SPECS).get("teacher_checkpoint_id"), "t1");
  assert.equal(asked({}, { needed: ["base_checkpoint_id"] }).problems[0].message, "Choose a base checkpoint");
});

test("of several choices with a usual one, none is a mistake", () => {
  const specs = [{ name: "lora_targets", kind: "choices", default: "q_proj,v_proj" }];
  const said = (text) => request(state({ lora_targets: text }), specs, BUDGETS);
  assert.deepEqual(said("q_proj,v_proj").body.config, {});
  assert.deepEqual(said("v_proj").body.config, { lora_targets: ["v_proj"] });
  assert.match(said("").problems[0].message, /at least/);
  assert.equal(commandLine(said("v_proj").body), "python train.py pretrain --lora_targets v_proj");
});

test("a number that says the same as the default is no change", () => {
  assert.equal(isChanged(SPECS[6], "1.0"), false);
  assert.equal(isChanged(SPECS[6], "1e0"), false);
  assert.equal(isChanged(SPECS[6], "2"), true);
  assert.equal(isChanged(SPECS[6], "x"), true);
  assert.equal(isChanged(SPECS[7], "0"), false);
});

test("the address keeps the form, wrong texts too", () => {
  const params = query(state({ batch_size: "eight", grad_clip: "1.0", max_steps: "60" },
                             { budget: "steps", name: "a&b", devices: "cpu", ranks: "2" }), SPECS);
  assert.deepEqual(Object.fromEntries(params), { stage: "pretrain", name: "a&b", max_steps: "60",
                                                 batch_size: "eight", devices: "cpu", ranks: "2" });
  assert.equal(query(state({ max_steps: "60" }), SPECS).get("budget"), "passes", "else it would come back as steps");
  assert.equal(query(state({}, { budget: "minutes" }), SPECS).get("budget"), "minutes");
  const copy = query(state(), SPECS, "r1");
  assert.deepEqual([copy.get("clone"), copy.get("edited"), copy.get("notes")], ["r1", "1", ""]);
  assert.equal(query(state({}, { notes: "x".repeat(2000) }), SPECS, "r1").has("notes"), false, "the original's come back");
  assert.equal(query(state({}, { notes: "x".repeat(2000) }), SPECS).has("notes"), false);
});

test("the command line is one a shell reads as one", () => {
  const line = (values, rest) => commandLine(asked(values, rest).body);
  assert.equal(line({}), "python train.py pretrain");
  assert.equal(line({ batch_size: "8", use_compile: "1", languages: "en,zh" }, { dataset_id: "d1" }),
               "python train.py pretrain --batch_size 8 --use_compile --languages en,zh");
  assert.equal(line({ wandb_project: "it's $HOME; rm -rf" }), "python train.py pretrain --wandb_project 'it'\\''s $HOME; rm -rf'");
  assert.equal(line({}, { devices: "cpu", ranks: "2" }), "torchrun --nproc_per_node 2 train.py pretrain --device cpu");
  assert.equal(line({}, { devices: "cuda:1" }), "python train.py pretrain --device cuda:1");
  assert.equal(commandLine({ stage: "sft", config: { tokenizer: "t1", sure: false } }), "python train.py sft --no_sure");
  assert.ok(hasIds({ config: { tokenizer: "t1" } }));
  assert.ok(!hasIds({ config: {} }));
});

test("problems of the API find their fields", () => {
  assert.equal(fieldOf({ field: "config.batch_size" }), "batch_size");
  assert.equal(fieldOf({ field: "dataset_id" }), "dataset_id");
  assert.equal(fieldOf({ field: "tags.0" }), "tags");
  assert.equal(fieldOf({ field: null }), null);
  assert.deepEqual(problemsOf({ problems: [], field: "config.seed", message: "No." }), [{ field: "seed", message: "No.", hint: "" }]);
});

test("the parts of a model are all of it", () => {
  const tiny = { vocab_size: 2048, hidden_size: 128, num_hidden_layers: 3, num_attention_heads: 4, num_key_value_heads: 2,
                 head_dim: 32, intermediate_size: 448, qk_norm: true, tie_word_embeddings: true };
  const sum = (model) => parameterParts(model).reduce((total, part) => total + part.value, 0);
  assert.equal(sum(tiny), 926_784);
  assert.equal(sum({ vocab_size: 6400, hidden_size: 640, num_hidden_layers: 8, num_attention_heads: 8, num_key_value_heads: 2,
                     head_dim: 80, intermediate_size: 1728, qk_norm: false, tie_word_embeddings: true, num_experts: 4,
                     num_shared_experts: 1 }), 145_029_760);
  assert.deepEqual(memoryParts({ weights: 4, odd: 1 }).map((p) => p.value), [4, 1]);
});

const host = (values) => ({ name: "here", is_alive: true, draining: false, cpu_slots: 2, devices: [], in_use: [], ...values });

test("when it would start", () => {
  const said = (hosts, devices = "auto", queued = 0) => outlook({ hosts, runs: { queued } }, devices);
  const busy = [{ device: "cpu:0", run_id: "r" }];
  assert.deepEqual(said([host()]).waits, false);
  assert.match(said([host()]).text, /here/);
  assert.match(said([]).text, /No worker/);
  assert.match(said([host({ is_alive: false })]).text, /No worker/);
  assert.match(said([host({ draining: true })]).text, /No worker/);
  assert.match(said([host({ in_use: busy })], "auto", 2).text, /busy.*2 runs/);
  assert.equal(said([host({ in_use: busy })], { kind: "cpu", count: 1 }).waits, false);
  assert.match(said([host()], { kind: "cuda", count: 1 }).text, /No machine/);
  assert.match(said([host()], ["cuda:0"]).text, /No machine/);
  assert.match(said([host()], "auto", 1).text, /^One run/);
  const gpu = host({ devices: [{ id: "cuda:0", memory_bytes: 8e9 }] });
  assert.equal(said([{ ...gpu, in_use: busy }]).waits, false, "auto takes the GPU");
  assert.equal(gpuMemory({ hosts: [gpu] }, "auto"), 8e9);
  assert.equal(gpuMemory({ hosts: [gpu] }, { kind: "cpu", count: 1 }), null);
});

test("work is said in time", () => {
  assert.match(work(3.5e14), /350T operations: 58 min 20 s/);
  assert.match(work(1e20), /GPU/);
});

test("what only one stage does, in a sentence", () => {
  const plain = { parameters: 1000, trainable_parameters: 1000, sequences_per_example: 1, reference_flops: null,
                  teacher_parameters: null, teacher_flops: null, total_flops: 4e9 };
  assert.equal(ownNeeds(plain), "");
  assert.equal(ownNeeds({ ...plain, parameters: null, trainable_parameters: null }), "");
  assert.match(ownNeeds({ ...plain, trainable_parameters: 25 }), /^25 numbers are learnt, 2\.5 % of the model/);
  const pairs = { ...plain, sequences_per_example: 2 };
  assert.match(ownNeeds(pairs), /two sequences/);
  assert.match(ownNeeds({ ...pairs, reference_flops: 1e9 }), /reads all of them once: 1G operations/);
  const taught = { ...plain, teacher_parameters: 2e6 };
  assert.match(ownNeeds(taught), /^The teacher has 2M parameters and reads every token too\.$/);
  assert.match(ownNeeds({ ...taught, teacher_flops: 1e9 }), /25 % of all operations/);
  assert.deepEqual(memoryParts({ weights: 1, teacher: 2 }).map(({ label }) => label), ["weights", "teacher"]);
});
