// A pipeline as its form holds it, and as the API wants it.

/** Datasets that a stage can learn from. */
export function fitting(datasets, stage) {
  return datasets.filter((dataset) => stage.layouts.includes(dataset.layout));
}

/** Value of the data field for a part of the starter corpus; datasets have their ids. */
const STARTER = "starter:";
export const partValue = (part) => STARTER + part;

/** Position of the stage that a row starts from, -1 for random weights. An empty field is the stage before. */
export function startOf(rows, place) {
  return rows[place].from === "" || rows[place].from === undefined ? place - 1 : Number(rows[place].from);
}

/** Whether new weights begin at this row: it decides their size. */
export function beginsModel(rows, place) {
  const before = startOf(rows, place);
  return rows[place].stage !== "tokenizer" && (before < 0 || rows[before]?.stage === "tokenizer");
}

/**
 * What stands in the rows of the form as stages of POST /pipelines: empty fields are left to the server.
 * Rows that learn from the starter corpus learn of one world, sized by their minutes together.
 */
export function stagesOf(rows) {
  const ofStarter = rows.filter((row) => !row.dataset || row.dataset.startsWith(STARTER));
  const together = ofStarter.reduce((sum, row) => sum + Number(row.minutes || 0), 0);
  return rows.map((row, place) => {
    const isStarter = ofStarter.includes(row);
    return {
      stage: row.stage,
      ...(isStarter ? {} : { dataset_id: row.dataset }),
      ...(row.from ? { from_stage: Number(row.from) } : {}),
      ...(row.teacher ? { teacher_stage: Number(row.teacher) } : {}),
      config: {
        ...(row.dataset && isStarter ? { starter: row.dataset.slice(STARTER.length) } : {}),
        ...(isStarter && ofStarter.length > 1 && together > 0 ? { starter_minutes: together } : {}),
        ...(row.minutes && row.stage !== "tokenizer" ? { max_minutes: Number(row.minutes) } : {}),
        ...(row.preset && beginsModel(rows, place) ? { preset: row.preset } : {}),
      },
      ...(row.gate && row.stage !== "tokenizer" ? { gate: { [row.stage === "dpo" ? "reward_accuracy" : "eval_loss"]: Number(row.gate) } } : {}),
    };
  });
}

/** Which field of which row a problem of the API is about; null where it is none of the form's. */
export function placeOf(field) {
  if (field === "name") return { row: null, name: "name" };
  const match = /^stages\.(\d+)\.(?:config\.)?(\w+)/.exec(field ?? "");
  if (!match) return null;
  const names = { max_minutes: "minutes", dataset_id: "dataset", starter: "dataset", starter_minutes: "minutes", preset: "preset",
                  gate: "gate", stage: "stage", from_stage: "from", teacher_stage: "teacher" };
  return { row: Number(match[1]), name: names[match[2]] ?? "stage" };
}
