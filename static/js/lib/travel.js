// Time travel: one prompt asked of every checkpoint of a run, a few at a time, those nearest to the reader first.

import { t } from "./i18n.js";

const MOST_WORDS = 600; // comparing two texts takes the product of their lengths
const WORDS = /\p{Script=Han}|[\p{L}\p{N}_'’]+|\s+|[^\s]/gu;
const TRY_AGAIN_S = 2;
/** What kind of trouble it is: this checkpoint alone is not there, the model has no time now, or nobody is there at all. */
function kindOf({ status, code, retryAfter }) {
  if ([404, 409].includes(status) || code === "checkpoint_unusable") return "gone";
  if (status === 429 || code === "server_busy") return "busy";
  return status === 0 || status >= 500 || retryAfter ? "away" : "failed";
}

/** Places from `at` outwards, the one ahead before the one behind. */
export function outwards(count, at) {
  const places = Array.from({ length: count }, (_, place) => place);
  return places.sort((a, b) => Math.abs(a - at) - Math.abs(b - at) || b - a);
}

/** `text` in pieces: [{text, isNew}], new being what stands in no longest common sequence with `previous`. */
export function changes(previous, text) {
  const [before, after] = [previous, text].map((one) => one.match(WORDS) ?? []);
  if (!before.length || before.length > MOST_WORDS || after.length > MOST_WORDS) return text ? [{ text, isNew: false }] : [];
  const longest = Array.from({ length: before.length + 1 }, () => new Uint16Array(after.length + 1));
  for (let i = before.length - 1; i >= 0; i -= 1) {
    for (let j = after.length - 1; j >= 0; j -= 1) {
      longest[i][j] = before[i] === after[j] ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
    }
  }
  const pieces = [];
  const add = (word, isNew) => {
    const last = pieces.at(-1);
    if (last?.isNew === isNew || (last && /^\s+$/.test(word))) last.text += word; // a space alone is no news
    else pieces.push({ text: word, isNew });
  };
  let [i, j] = [0, 0];
  while (j < after.length) {
    if (i < before.length && before[i] === after[j]) {
      add(after[j], false);
      i += 1;
      j += 1;
    } else if (i < before.length && longest[i + 1][j] >= longest[i][j + 1]) i += 1;
    else add(after[j++], true);
  }
  return pieces;
}

/**
 * Where the points of a way stand in a picture: {dots: [{x, y}], lines: [{run_id, points}], gaps: [x]}. `y` follows the
 * held-out loss; without one a point stands at the bottom and in no line. Each run has a line of its own, since runs are
 * held to different texts.
 */
export function picture(points, width, height, edge) {
  const losses = points.map((point) => point.eval_loss).filter((loss) => loss !== null);
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const x = (place) => (points.length === 1 ? width / 2 : edge + (place / (points.length - 1)) * (width - 2 * edge));
  const y = (loss) => (loss === null ? height - edge : edge + (high > low ? (high - loss) / (high - low) : 0.5) * (height - 2 * edge));
  // a low loss is good, and stands low
  const dots = points.map((point, place) => ({ x: x(place), y: y(point.eval_loss) }));
  const lines = [];
  const gaps = [];
  points.forEach((point, place) => {
    const isSame = place > 0 && points[place - 1].run_id === point.run_id;
    if (place > 0 && !isSame) gaps.push((dots[place - 1].x + dots[place].x) / 2);
    if (point.eval_loss === null) return;
    if (lines.at(-1)?.run_id !== point.run_id) lines.push({ run_id: point.run_id, points: [] });
    lines.at(-1).points.push(dots[place]);
  });
  return { dots, lines, gaps };
}

/**
 * Asks every point once for each request, and remembers. `ask(point, request, answer, {signal, onPart})` writes into
 * `answer` and returns an error or null. The state of a point: "waiting", "asking", "answered", "failed", "gone".
 */
export class Traveller {
  constructor({ points, ask, onChange = () => {}, atOnce = 2, clock = globalThis }) {
    Object.assign(this, { points, ask, onChange, atOnce, clock, at: points.length - 1, request: null, results: [], problem: null });
    this.known = new Map(); // request -> its results
    this.gone = new Set(); // places whose checkpoint is not there any more
  }

  get isBusy() {
    return this.results.some(({ state }) => state === "asking" || state === "waiting") && !this.isStopped;
  }

  /** What was asked and has been answered, as it can be kept. */
  get snapshot() {
    const { request, results, points, at, isBusy } = this;
    const answered = results.flatMap(({ state, answer }, place) => (state === "answered" ? [[points[place].id, answer]] : []));
    return { request, at: points[at].id, isBusy, answered };
  }

  /** What `snapshot` was at another time; there may be other points by now. Whoever was not asked yet then is asked. */
  restore({ request, at, isBusy, answered }) {
    const known = new Map(answered);
    const place = this.points.findIndex(({ id }) => id === at);
    if (place >= 0) this.at = place;
    if (!request) return;
    const results = this.points.map(({ id }) => ({ state: known.has(id) ? "answered" : "waiting", answer: known.get(id) ?? null, error: null }));
    this.known.set(JSON.stringify(request), results);
    if (isBusy) this.start(request);
    else Object.assign(this, { request, results, isStopped: true });
  }

  /** How many have been answered. */
  get answered() {
    return this.results.filter(({ state }) => state === "answered").length;
  }

  start(request) {
    this.stop();
    const key = JSON.stringify(request);
    if (!this.known.has(key)) this.known.set(key, this.points.map(() => ({ state: "waiting", answer: null, error: null })));
    Object.assign(this, { request, results: this.known.get(key), problem: null, isStopped: false, controller: new AbortController() });
    for (const [place, result] of this.results.entries()) {
      if (this.gone.has(place)) result.state = "gone";
      else if (result.state !== "answered") Object.assign(result, { state: "waiting", answer: null, error: null });
    }
    this.onChange(null);
    this.#pump();
  }

  moveTo(place) {
    this.at = Math.max(0, Math.min(this.points.length - 1, place));
    this.onChange(null);
  }

  stop() {
    this.isStopped = true;
    this.controller?.abort();
    this.clock.clearTimeout(this.timer);
    for (const result of this.results) if (result.state === "asking") Object.assign(result, { state: "waiting", answer: null });
    this.onChange(null);
  }

  #pump() {
    const { results } = this;
    if (this.isStopped) return;
    let asking = results.filter(({ state }) => state === "asking").length;
    for (const place of outwards(results.length, this.at)) {
      if (asking >= this.atOnce) return;
      if (results[place].state !== "waiting") continue;
      asking += 1;
      this.#ask(place);
    }
  }

  async #ask(place) {
    const { controller, request, results } = this;
    const result = results[place];
    Object.assign(result, { state: "asking", answer: { role: "assistant", content: "", finish_reason: null } });
    this.onChange(place);
    const error = await this.ask(this.points[place], request, result.answer, {
      signal: controller.signal, onPart: () => this.onChange(place) });
    if (controller.signal.aborted) return; // another prompt is asked by now, or none
    const kind = error ? kindOf(error) : "answered";
    if (kind === "busy") this.#later(result, error);
    else if (kind === "away") this.#break(result, error);
    else {
      if (kind === "gone") this.gone.add(place);
      Object.assign(result, { state: kind, error });
      this.#pump();
    }
    this.onChange(place);
  }

  /** The model is busy: the same one again, when it may not be. */
  #later(result, error) {
    result.state = "waiting";
    this.clock.clearTimeout(this.timer);
    this.timer = this.clock.setTimeout(() => this.#pump(), (error.retryAfter ?? TRY_AGAIN_S) * 1000);
  }

  /** Nobody answers: whoever is asked next would not either. */
  #break(result, error) {
    this.stop();
    Object.assign(result, { state: "waiting", answer: null });
    this.problem = error;
  }
}

/** What is said of a point whose answer is not there. */
export function absent({ state, error }) {
  const texts = { waiting: t("Not asked yet."), asking: t("It is answering…"), gone: t("This checkpoint was deleted meanwhile.") };
  return texts[state] ?? error?.message ?? "";
}
