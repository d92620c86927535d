// A pipeline as its form holds it, and as the API wants it.

/** Datasets that a stage can learn from. */
export function fitting(datasets, stage) {
  return datasets.filter((dataset) => stage.layouts.includes(dataset.layout));
}

/** What stands in the rows of the form as stages of POST /pipelines: empty fields are left to the server. */
export function stagesOf(rows) {
  return rows.map((row, place) => ({
    stage: row.stage,
    ...(row.dataset ? { dataset_id: row.dataset } : {}),
    config: {
      ...(row.minutes && row.stage !== "tokenizer" ? { max_minutes: Number(row.minutes) } : {}),
      ...(row.preset && (place === 0 || rows[place - 1].stage === "tokenizer") && row.stage !== "tokenizer" ? { preset: row.preset } : {}),
    },
    ...(row.gate && place < rows.length - 1 ? { gate: { eval_loss: Number(row.gate) } } : {}),
  }));
}

/** Which field of which row a problem of the API is about; null where it is none of the form's. */
export function placeOf(field) {
  if (field === "name") return { row: null, name: "name" };
  const match = /^stages\.(\d+)\.(?:config\.)?(\w+)/.exec(field ?? "");
  if (!match) return null;
  const names = { max_minutes: "minutes", dataset_id: "dataset", preset: "preset", gate: "gate", stage: "stage" };
  return { row: Number(match[1]), name: names[match[2]] ?? "stage" };
}
