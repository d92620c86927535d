// What the first-model wizard asks the server for.

export const SEED = 42;

/** The dataset source of one part of the starter world, sized by the whole time: both stages learn of one world. */
export function starterSource(part, { minutes, languages }) {
  return { kind: "starter", part, minutes, seed: SEED, ...(languages ? { languages } : {}) };
}

/** A dataset that was made from this source before and is (or will be) usable. */
export function withSource(datasets, source) {
  const same = (given) => given.kind === "starter" && given.part === source.part && given.minutes === source.minutes
    && given.seed === source.seed && String(given.languages ?? "") === String(source.languages ?? "");
  return datasets.find((dataset) => dataset.state !== "failed" && same(dataset.source));
}

/** The stages: the time is shared between reading and learning to answer. */
export function stagesFor({ minutes, preset, share }, textId, dialoguesId) {
  const rounded = (value) => Math.round(value * 1000) / 1000;
  return [
    { stage: "pretrain", dataset_id: textId, config: { preset, max_minutes: rounded(minutes * share), seed: SEED } },
    { stage: "sft", dataset_id: dialoguesId, config: { max_minutes: rounded(minutes * (1 - share)), seed: SEED } },
  ];
}
