// What a run will need, in numbers and bars. It shows what it is given; <run-form> asks the studio.

import { h, setText, svg } from "../lib/dom.js";
import { bytes, compact, duration, integer, NOTHING } from "../lib/format.js";
import { t } from "../lib/i18n.js";
import { memoryParts, ownNeeds, parameterParts, work } from "../lib/run-outlook.js";

const BAR_WIDTH = 100;

class PreflightCard extends HTMLElement {
  connectedCallback() {
    this.numbers = this.querySelector("[data-numbers]");
    this.warnings = this.querySelector("[data-warnings]");
    this.trouble = this.querySelector("[data-trouble]");
    this.hasNumbers = false;
  }

  /** Old numbers stay, dimmed, until there are new ones. */
  wait() {
    this.dataset.stale = "";
    this.setAttribute("aria-busy", "true");
  }

  /** There are no new numbers; `why` says so in a sentence. */
  fail(why) {
    this.dataset.stale = "";
    this.removeAttribute("aria-busy");
    setText(this.trouble, why);
    this.trouble.hidden = false;
  }

  /**
   * @param answer of POST /preflight
   * @param gpuBytes memory of the largest GPU that it may use, null on a CPU
   * @param isPart something was left out of the question because it is wrong
   */
  show(answer, gpuBytes, isPart = false) {
    this.hasNumbers = true;
    delete this.dataset.stale;
    this.removeAttribute("aria-busy");
    this.trouble.hidden = !isPart;
    setText(this.trouble, isPart ? t("As if what is marked had not been typed.") : "");
    const hasWeights = answer.parameters !== null;
    for (const part of this.querySelectorAll("[data-weights-only]")) part.hidden = !hasWeights;
    const perParameter = answer.total_tokens === null || !hasWeights ? null : answer.total_tokens / answer.parameters;
    this.#say({
      parameters: compact(answer.parameters), total_steps: answer.total_steps === null ? this.#unknownSteps(answer) : integer(answer.total_steps),
      tokens_per_step: integer(answer.tokens_per_step), total_tokens: compact(answer.total_tokens),
      tokens_per_parameter: compact(perParameter), time: answer.time_s === null ? t("not known yet") : duration(answer.time_s),
      work: this.#work(answer, hasWeights), own: ownNeeds(answer), memory: bytes(answer.memory_bytes),
      memory_title: answer.world_size > 1 ? t("Memory of each of %(count)s ranks", { count: answer.world_size }) : t("Memory of the device"),
      memory_note: gpuBytes !== null && answer.memory_bytes > gpuBytes
        ? t("The largest GPU here has %(size)s. Try a smaller batch size, or a smaller model.", { size: bytes(gpuBytes) }) : "",
      checkpoint: bytes(answer.checkpoint_bytes), disk: this.#disk(answer),
    });
    if (hasWeights) {
      this.#bar("parameters", parameterParts(answer.model), compact);
      this.#bar("memory", memoryParts(answer.memory), bytes);
    }
    this.warnings.hidden = answer.warnings.length === 0;
    this.warnings.replaceChildren(...answer.warnings.map((text) => h("li", {}, text)));
  }

  #say(texts) {
    for (const [name, text] of Object.entries(texts)) setText(this.querySelector(`[data-n="${name}"]`), text);
  }

  #unknownSteps(answer) {
    return answer.parameters === null ? NOTHING : t("set at the start");
  }

  #work(answer, hasWeights) {
    if (!hasWeights) return t("This stage trains no weights: it needs one device and little time.");
    if (answer.total_flops !== null) return work(answer.total_flops);
    return answer.time_s === null ? t("The number of steps is known once the data has been turned into tokens.")
      : t("A few steps are timed at the start; then the number of steps is fixed.");
  }

  #disk(answer) {
    const free = bytes(answer.disk_free_bytes);
    return answer.disk_bytes !== null && answer.disk_bytes > answer.disk_free_bytes
      ? t("%(free)s; its checkpoints may come to %(size)s", { free, size: bytes(answer.disk_bytes) }) : free;
  }

  /** Parts of a whole as one bar, with the same in words below. */
  #bar(name, parts, words) {
    const whole = parts.reduce((sum, part) => sum + part.value, 0) || 1;
    let from = 0;
    const pieces = parts.map((part, at) => {
      const width = (part.value / whole) * BAR_WIDTH;
      const piece = svg("rect", { x: from, y: 0, width, height: 8, class: `part-${at + 1}` });
      from += width;
      return piece;
    });
    const bar = svg("svg", { viewBox: `0 0 ${BAR_WIDTH} 8`, preserveAspectRatio: "none", "aria-hidden": "true" }, ...pieces);
    const legend = h("ul", {}, ...parts.map((part, at) =>
      h("li", {}, h(`span.swatch.part-${at + 1}`, { "aria-hidden": "true" }), `${part.label} ${words(part.value)}`)));
    this.querySelector(`[data-bar="${name}"]`).replaceChildren(bar, legend);
  }
}

customElements.define("preflight-card", PreflightCard);
