// Which charts a run has: the numbers that its events carry (minimind/trainer.py, speed.py, evaluation.py) with a title,
// a unit and a sentence for who meets them for the first time. A number that no chart knows gets a plain one.

import { bytes, percent, short } from "./format.js";
import { t } from "./i18n.js";

/** How a chart writes its values; `floor` is where its axis begins, `ceiling` where it ends at the least. */
export const KINDS = {
  plain: { write: short },
  share: { write: percent, floor: 0 },
  bytes: { write: bytes, floor: 0 },
  rate: { write: percent, floor: 0, ceiling: 1 },
  times: { write: (value) => `${short(value)}×`, floor: 0 },
};

/** Keys that a chart of the first group shows, or that say nothing as a curve. */
const SILENT = new Set(["epoch", "eval_loss", "eval_reward_chosen", "eval_reward_rejected", "eval_logp_chosen", "eval_logp_rejected"]);

/** A number of each step as it came, faint, and smoothed. */
const noisy = (key, label, color) => ({ keys: [key, key], series: [
  { label: t("each step"), color, faint: true }, { label, color }] });
const plain = (key, label, color, dots = false) => ({ keys: [key], series: [{ label, color, dots }] });

/** The same with dots of held-out data. */
const watched = (key, held, label, heldLabel) => ({ keys: [key, key, held], series: [
  { label: t("each step"), color: "curve-1", faint: true }, { label, color: "curve-1" },
  { label: heldLabel, color: "curve-2", dots: true }] });
/** Chosen and rejected answers in one chart. */
const bothSides = (key) => ({ keys: [`${key}_chosen`, `${key}_chosen`, `${key}_rejected`, `${key}_rejected`], series: [
  { label: t("each step"), color: "curve-3", faint: true }, { label: t("chosen"), color: "curve-3" },
  { label: t("each step"), color: "curve-2", faint: true }, { label: t("rejected"), color: "curve-2" }] });

const loss = (help) => ({ name: "loss", label: t("Loss"), logs: true, help,
                          ...watched("loss", "eval_loss", t("training loss"), t("held-out loss")) });

/** The loss of a stage, and what else only it has. */
const OWN = {
  dpo: () => [
    loss(t("How far the preferred answers are from winning. The loss of DPO begins at 0.693, the loss of a coin, and falls as they win more clearly.")),
    { name: "reward-accuracy", label: t("Preferred answers that win"), kind: "rate", line: { at: 0.5, label: t("a coin") },
      ...watched("reward_accuracy", "eval_reward_accuracy", t("pairs won"), t("held-out pairs won")),
      help: t("Share of the pairs whose chosen answer gets the higher reward.") },
    { name: "reward-margin", label: t("Margin of the reward"), line: { at: 0, label: t("none") },
      ...watched("reward_margin", "eval_reward_margin", t("margin"), t("held-out margin")),
      help: t("Reward of the chosen answer less that of the rejected one. It grows slowly; one that shoots up while held-out pairs are not won any more has learnt the pairs by heart.") },
    { name: "rewards", label: t("Rewards"), ...bothSides("reward"),
      help: t("Beta times how much likelier an answer has become than under the reference. Both may fall, as long as the rejected one falls faster.") },
  ],
  distill: () => [
    { ...loss(t("What the student is trained on: alpha times its surprise at the data, the rest its distance from the teacher.")),
      ...noisy("loss", t("training loss"), "curve-1") },
    { name: "cross-entropy", label: t("Surprise at the data"), logs: true,
      ...watched("ce_loss", "eval_loss", t("cross entropy"), t("held-out loss")),
      help: t("How much the next token of the data surprises the student, in nats. It compares with the loss of other stages.") },
    { name: "teacher-distance", label: t("Distance from the teacher"), logs: true,
      ...watched("kl_loss", "eval_kl", t("divergence"), t("held-out divergence")),
      help: t("Kullback-Leibler divergence between the teacher's and the student's next tokens, times the square of the temperature. 0 would be a perfect copy.") },
  ],
};

/** Those that every run of a stage has sooner or later: there from the beginning. */
function first(stage) {
  const own = OWN[stage]?.() ?? [
    loss(t("How much the next token surprises the model, in nats. Where held-out text rises while training falls, it learns by heart."))];
  return [
    ...own,
    { name: "speed", label: t("Speed, tokens per second"), ...noisy("tokens_per_s", t("speed"), "curve-3"),
      help: t("Tokens that training steps work through; evaluating and saving are left out.") },
    { name: "learning-rate", label: t("Learning rate"), ...plain("lr", t("learning rate"), "curve-4"),
      help: t("How far a step goes: it rises, then falls along half a cosine.") },
    { name: "gradient-norm", label: t("Gradient norm"), logs: true, ...noisy("grad_norm", t("gradient norm"), "curve-2"),
      help: t("How steep the loss is, before clipping. Sudden peaks are steps from which training may go astray.") },
  ];
}

function others() {
  return [
    { name: "answers", title: t("Likelihood of the answers"), charts: [
      { name: "log-probabilities", label: t("Log-probability of an answer"), ...bothSides("logp"),
        help: t("Of all tokens of an answer together, in nats. Where that of the chosen answers falls far, the model forgets how to speak: stop earlier, or raise beta.") },
    ] },
    { name: "held-out", title: t("On held-out text"), charts: [
      { name: "bits-per-byte", label: t("Bits per byte"), ...plain("bits_per_byte", t("bits per byte"), "curve-2", true),
        help: t("Bits that the model would need to write down one byte of text. It can be compared between vocabularies, which a loss cannot.") },
      { name: "perplexity", label: t("Perplexity"), logs: true, ...plain("perplexity", t("perplexity"), "curve-1", true),
        help: t("The model is as unsure of the next token as if it threw a die of this many sides: e to the power of the held-out loss.") },
    ] },
    { name: "experts", title: t("Experts"), charts: [
      { name: "expert-load", label: t("Busiest expert"), kind: "times", line: { at: 1, label: t("even") },
        ...noisy("expert_load_max", t("busiest expert"), "curve-1"),
        help: t("Tokens of the busiest expert of any layer, as a multiple of an even share. 1× is perfect balance; at experts ÷ experts for each token, all others are idle.") },
      { name: "balance-loss", label: t("Balance loss"), ...noisy("balance_loss", t("balance loss"), "curve-2"),
        help: t("What uneven experts add to the loss, weighted. It pushes the router to spread tokens.") },
    ] },
    { name: "machine", title: t("Use of the machine"), charts: [
      { name: "mfu", label: t("MFU"), kind: "share", ...noisy("mfu", t("MFU"), "curve-3"),
        help: t("Model FLOPs utilization: the arithmetic that the tokens need, as a share of what this machine reaches in large matrix products. Small models stay low: they mostly wait for memory.") },
      { name: "memory", label: t("Peak memory"), kind: "bytes", ...plain("memory_peak_bytes", t("peak memory"), "curve-4"),
        help: t("The most memory so far: of tensors on a GPU, of the whole process on a CPU.") },
    ] },
    { name: "data", title: t("Data"), charts: [
      { name: "data-wait", label: t("Time spent reading data"), kind: "share", ...noisy("data_wait_share", t("reading data"), "curve-1"),
        help: t("Share of a step in which rows are read and packed. On a CPU training waits for it; a GPU computes meanwhile.") },
      { name: "learnt-share", label: t("Tokens that are learnt"), kind: "share", ...noisy("learnt_share", t("learnt"), "curve-3"),
        help: t("Tokens of a step that the loss looks at. Fine-tuning learns the answers alone; questions are only read.") },
    ] },
  ];
}

/** The newest values of charts in one line, of noisy numbers their average. `curves`: name -> Curve. */
export function newest(charts, curves) {
  return charts.map(({ keys, series, kind }) => {
    const curve = curves.get(keys[0]);
    const value = (keys.length > 1 ? curve?.smooth : curve?.y)?.findLast((each) => each !== null);
    return `${series[keys.lastIndexOf(keys[0])].label} ${KINDS[kind ?? "plain"].write(value)}`;
  }).join(" · ");
}

/**
 * The charts of a run by group: `[{name, title, charts}]`, the first group without a title.
 * @param keys names of the numbers that the run has so far
 * @param stage of the run: it decides what stands first
 */
export function chartsOf(keys, stage = "") {
  const has = new Set(keys);
  const groups = [{ name: "first", title: "", charts: first(stage) }];
  for (const { name, title, charts } of others()) {
    const present = charts.filter((chart) => has.has(chart.keys[0]));
    if (present.length) groups.push({ name, title, charts: present });
  }
  const known = new Set([...first(stage), ...others().flatMap(({ charts }) => charts)].flatMap(({ keys }) => keys));
  const unknown = [...has].filter((key) => !known.has(key) && !SILENT.has(key)).sort();
  if (unknown.length) {
    groups.push({ name: "more", title: t("More numbers"), charts: unknown.map((key) => ({ name: key, label: key, ...noisy(key, key, "curve-4") })) });
  }
  return groups;
}
