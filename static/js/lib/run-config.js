// From what stands in the controls of the new-run form to what is sent: the request's body, the address that keeps the
// form, the command line. Every value of a form is text here: "" is "not given", a switch "1" or "0", several choices
// are joined by commas.

import { t } from "./i18n.js";

/** Options that each way of saying how long a run trains sets. */
const BUDGET_OPTIONS = new Set(["epochs", "max_minutes", "max_steps"]);

/**
 * What a text means: `{value}`, `{}` where it is not given, or `{problem: {message, hint}}`.
 * @param {{name: string, kind: string, default: string, bounds?: {low?, above?, high?, below?}}} spec
 */
export function parsed(spec, text) {
  const said = text.trim();
  if (said === "") return {};
  if (spec.kind === "flag" || spec.kind === "switch") return { value: said === "1" };
  if (spec.kind === "choices") return { value: said.split(",") };
  if (spec.kind === "integer" || spec.kind === "number") return number(spec, said);
  return { value: said };
}

function number({ kind, bounds = {} }, said) {
  if (/^[+-]?\d+,\d+$/.test(said)) {
    const hint = kind === "integer" ? t("Write %(text)s, without a separator.", { text: said.replace(",", "") })
      : t("Write %(text)s, with a point.", { text: said.replace(",", ".") });
    return { problem: { message: t("A comma has different meanings in different countries."), hint } };
  }
  // Number() alone would also take "", "0x10" and "Infinity"
  const value = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(said) ? Number(said) : NaN;
  if (!Number.isFinite(value)) {
    return { problem: { message: t("This is not a number."),
                        hint: kind === "integer" ? t("Write a whole number, such as 100.")
                          : t("Write it as 0.001 or 1e-3.") } };
  }
  if (kind === "integer" && !Number.isSafeInteger(value)) {
    return { problem: { message: t("This must be a whole number."), hint: "" } };
  }
  const message = outOf(bounds, value);
  return message ? { problem: { message, hint: "" } } : { value };
}

function outOf({ low, above, high, below }, value) {
  if (value < low) return t("This must be at least %(limit)s.", { limit: low });
  if (value <= above) return t("This must be more than %(limit)s.", { limit: above });
  if (value > high) return t("This must be at most %(limit)s.", { limit: high });
  if (value >= below) return t("This must be less than %(limit)s.", { limit: below });
  return null;
}

/** Whether a text asks for something else than leaving it alone would. */
export function isChanged(spec, text) {
  const said = text.trim();
  if (said === "" || said === spec.default) return false;
  if (spec.default === "" || (spec.kind !== "integer" && spec.kind !== "number")) return true;
  return parsed(spec, said).value !== Number(spec.default);
}

/** The options that count: of those that set the budget only the ones of the chosen way. */
export function active(specs, budget, budgets) {
  const chosen = budgets[budget] ?? [];
  return specs.filter((spec) => !BUDGET_OPTIONS.has(spec.name) || chosen.includes(spec.name));
}

/**
 * The body of POST /runs, and what is wrong or missing before it is even sent.
 * @param state {stage, name, dataset_id, base_checkpoint_id, teacher_checkpoint_id, devices, ranks, priority, tags,
 *   notes, budget, values, needed}: `needed` names the places that this stage cannot do without
 */
export function request(state, specs, budgets) {
  const problems = [];
  const note = (field, problem) => problems.push({ field, ...problem });
  const body = { stage: state.stage };
  if (state.name.trim()) body.name = state.name.trim();
  const config = {};
  for (const spec of active(specs, state.budget, budgets)) {
    const text = state.values[spec.name] ?? "";
    const { value, problem } = parsed(spec, text);
    if (problem) note(spec.name, problem);
    else if (spec.kind === "choices" && text === "" && spec.default !== "") {
      note(spec.name, { message: t("Choose one at least."), hint: "" });
    } else if (value === undefined && spec.default === "" && BUDGET_OPTIONS.has(spec.name)) {
      const message = spec.name === "max_minutes" ? t("Say how many minutes") : t("Say how many steps");
      note(spec.name, { message, hint: "", isMissing: true });
    } else if (isChanged(spec, text)) config[spec.name] = value;
  }
  body.config = config;
  if (state.dataset_id) body.dataset_id = state.dataset_id;
  for (const name of ["base_checkpoint_id", "teacher_checkpoint_id"]) {
    if (state[name]) body[name] = state[name];
    else if (state.needed?.includes(name)) {
      note(name, { message: name === "base_checkpoint_id" ? t("Choose a base checkpoint") : t("Choose a teacher"),
                   hint: "", isMissing: true, isUnchosen: true });
    }
  }
  const devices = devicesOf(state, note);
  if (devices !== "auto") body.devices = devices;
  const priority = parsed({ kind: "integer" }, state.priority);
  if (priority.problem) note("priority", priority.problem);
  else if (priority.value) body.priority = priority.value;
  const tags = state.tags.split(",").map((tag) => tag.trim()).filter(Boolean);
  if (tags.length) body.tags = tags;
  if (state.notes.trim()) body.notes = state.notes.trim();
  return { body, problems };
}

function devicesOf(state, note) {
  if (state.devices === "auto" || !state.devices) return "auto";
  if (state.devices !== "cpu" && state.devices !== "cuda") return state.devices.split(",");
  const { value, problem } = parsed({ kind: "integer" }, state.ranks);
  if (problem) note("devices", problem);
  return problem ? "auto" : { kind: state.devices, count: value ?? 1 };
}

/** The way of saying how long that the server reads out of these values, as app/runs/form.py does. */
function budgetOf({ max_minutes: minutes, max_steps: steps }) {
  return minutes && steps ? "both" : minutes ? "minutes" : steps ? "steps" : "passes";
}

//: a longer text is not kept in the address: servers and chat programs cut it
const LONGEST_NOTES = 1000;

/** The address's query that brings this form back. Of a copy it says so, and that all its values stand here. */
export function query(state, specs, clone = null) {
  const params = new URLSearchParams({ stage: state.stage });
  const put = (name, value, usual = "") => value !== usual && value !== "" && params.set(name, value);
  if (clone) {
    params.set("clone", clone);
    params.set("edited", "1");
  }
  put("name", state.name);
  put("dataset_id", state.dataset_id);
  put("base_checkpoint_id", state.base_checkpoint_id);
  put("teacher_checkpoint_id", state.teacher_checkpoint_id ?? "");
  put("budget", state.budget, budgetOf(state.values));
  for (const spec of specs) if (isChanged(spec, state.values[spec.name] ?? "")) put(spec.name, state.values[spec.name].trim());
  put("devices", state.devices, "auto");
  if (state.devices === "cpu" || state.devices === "cuda") put("ranks", state.ranks, "1");
  put("priority", state.priority, "0");
  put("tags", state.tags);
  // of a copy, no notes in the address are the original's long ones
  if (clone && !state.notes) params.set("notes", "");
  else if (state.notes.length <= LONGEST_NOTES) put("notes", state.notes);
  return params;
}

/** The same training from a terminal. Ids of the studio mean nothing there and are left out. */
export function commandLine(body) {
  const words = [];
  let device = null;
  let ranks = 1;
  if (Array.isArray(body.devices)) {
    ranks = body.devices.length;
    device = ranks > 1 ? body.devices[0].split(":")[0] : body.devices[0].replace(/^cpu:.*/, "cpu");
  } else if (body.devices) {
    ranks = body.devices.count;
    device = body.devices.kind;
  }
  words.push(...(ranks > 1 ? ["torchrun", "--nproc_per_node", String(ranks)] : ["python"]), "train.py", body.stage);
  for (const [name, value] of Object.entries(body.config)) {
    if (name === "tokenizer") continue;
    if (value === true) words.push(`--${name}`);
    else if (value === false) words.push(`--no_${name}`);
    else words.push(`--${name}`, Array.isArray(value) ? value.join(",") : String(value));
  }
  if (device) words.push("--device", device);
  return words.map(quoted).join(" ");
}

function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

/** Whether the command line leaves something out that has an id here. */
export function hasIds(body) {
  return Boolean(body.dataset_id || body.base_checkpoint_id || body.teacher_checkpoint_id || body.config.tokenizer);
}

/** The control that a problem of the API belongs to: "config.batch_size" and "devices.count" -> their fields. */
export function fieldOf(problem) {
  const parts = (problem.field ?? "").split(".");
  return (parts[0] === "config" && parts.length > 1 ? parts[1] : parts[0]) || null;
}

/** What a refusal says, each with the name of its field on this page. */
export function problemsOf(error) {
  const said = error.problems.length ? error.problems : [error];
  return said.map((problem) => ({ field: fieldOf(problem), message: problem.message, hint: problem.hint ?? "" }));
}
