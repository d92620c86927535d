// The form of a new run: numbers and problems while you type, the state in the address, and one request to queue it.

import { debounced, dataOf, h, onReturn, setText } from "../lib/dom.js";
import { ApiError, newKey, post } from "../lib/api.js";
import { t, tn } from "../lib/i18n.js";
import { liveSocket } from "../lib/live-socket.js";
import { commandLine, hasIds, isChanged, problemsOf, query, request } from "../lib/run-config.js";
import { goTo, hasField, hintDefaults, labelOf, markChanges, replaceParts, reset, showParts, showProblems, specsOf, stateOf } from "../lib/run-form-fields.js";
import { gpuMemory, outlook } from "../lib/run-outlook.js";

const ASK_AFTER_MS = 300;
const TRY_AGAIN_MS = 3000;

class RunForm extends HTMLElement {
  connectedCallback() {
    this.form = this.querySelector("form");
    this.card = this.querySelector("preflight-card");
    this.button = this.querySelector("[type=submit]");
    [this.budgets, this.presets, this.machines] = ["budgets", "presets", "machines"].map((name) => dataOf(this, name));
    this.remembered = {}; // texts of every stage that was shown: a switch back finds them again
    this.datasets = {}; // by stage: few fit two of them
    this.problems = this.theirs = [];
    this.soon = debounced(() => this.#ask(), ASK_AFTER_MS);
    this.form.addEventListener("input", (event) => event.target.name === "stage" || this.#changed());
    this.form.addEventListener("change", (event) => event.target.name === "stage" && this.#switchStage());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#queue();
    });
    this.form.addEventListener("keydown", (event) => {
      // Enter in a number means "that is it", not "train for hours"
      if (event.key === "Enter" && event.target.matches("input:not([type=checkbox], [type=radio])")) event.preventDefault();
    });
    this.addEventListener("click", (event) => {
      const target = event.target.closest("[data-reset], [data-go]");
      if (target?.dataset.go) goTo(this.form, target.dataset.go);
      else if (target) this.#reset(target.closest("[data-field]"));
    });
    onReturn(() => this.#busy(false));
    this.stop = liveSocket().subscribe("system", ({ data }) => {
      if (data?.hosts) this.machines = data;
      this.#showOutlook();
    });
    this.#look();
    const drawn = this.form.querySelector("[name=stage][checked]").value; // another may have been chosen before this script was here
    if (drawn === this.state.stage) this.#ask();
    else this.#switchStage(drawn);
  }

  disconnectedCallback() {
    this.stop?.();
    this.asking?.abort();
    clearTimeout(this.again);
  }

  /** What the form says now, and what follows from it at once. */
  #look() {
    this.state = stateOf(this.form);
    this.specs = specsOf(this.form);
    this.#remember();
    showParts(this.form, this.state, this.budgets);
    markChanges(this.form);
    const { body, problems: own } = request(this.state, this.specs, this.budgets);
    Object.assign(this, { body, own });
    setText(this.querySelector("#same-command"), commandLine(body));
    setText(this.querySelector("#same-body"), JSON.stringify(body, null, 2));
    this.querySelector("[data-command-note]").hidden = !hasIds(body);
  }

  #remember() {
    const { state, specs, form } = this;
    for (const spec of specs) {
      if (isChanged(spec, state.values[spec.name])) this.remembered[spec.name] = state.values[spec.name];
      else delete this.remembered[spec.name];
    }
    for (const name of ["base_checkpoint_id", "teacher_checkpoint_id", "budget"]) if (form.elements[name]) this.remembered[name] = state[name];
    this.datasets[state.stage] = state.dataset_id;
  }

  #changed() {
    if (this.isSwitching) return; // looked at once the new stage's parts are there
    this.asking?.abort(); // its answer would be one to an old question
    this.#look();
    this.#failure(null);
    this.card.wait();
    this.soon();
  }

  #reset(field) {
    reset(field);
    const control = field.querySelector("input, select");
    this.#changed();
    control.focus(); // the button that was pressed is gone
  }

  /** Ask the studio what this would need. Only the answer to the latest question counts. */
  async #ask() {
    clearTimeout(this.again);
    if (this.isSwitching) return;
    this.asking?.abort();
    const asking = (this.asking = new AbortController());
    history.replaceState(null, "", `/runs/new?${query(this.state, this.specs, this.dataset.clone)}`);
    const unchosen = this.own.filter(({ isUnchosen }) => isUnchosen).map(({ field }) => labelOf(this.form, field)).join(", ");
    if (unchosen) { // what the numbers depend on most: there is nothing to ask yet
      this.card.fail(t("The numbers come once this is chosen: %(what)s.", { what: unchosen }));
      return this.#show([]);
    }
    this.card.wait();
    this.#show(this.theirs);
    const said = JSON.stringify(this.body);
    try {
      const answer = await post("/preflight", this.body, { signal: asking.signal });
      if (asking.signal.aborted) return;
      this.card.show(answer, gpuMemory(this.machines, this.body.devices ?? "auto"), this.own.some(({ isMissing }) => !isMissing));
      hintDefaults(this.form, this.#usual(answer));
      this.#show([]);
    } catch (error) {
      if (asking.signal.aborted || error.name === "AbortError") return;
      if (!(error instanceof ApiError)) throw error;
      if (error.status === 422) {
        this.card.fail(this.card.hasNumbers ? t("Numbers from before the last change. New ones come once what is marked is mended.")
          : t("The numbers come once what is marked is mended."));
        this.judged = said;
        this.#show(problemsOf(error));
      } else {
        this.card.fail(`${error.message} ${error.hint}`);
        this.again = setTimeout(() => this.isConnected && this.#ask(), TRY_AGAIN_MS);
      }
    }
  }

  /** What the studio would choose for the options that are left to it. */
  #usual(answer) {
    const preset = this.presets[answer.preset];
    return preset ? { ...preset, ...answer.model, learning_rate: preset.learning_rate[answer.stage] } : {};
  }

  #show(theirs) {
    this.theirs = theirs;
    this.problems = [...this.own, ...theirs.filter(({ field }) => !this.own.some((problem) => problem.field === field))];
    // what is only missing is no mistake until somebody says "go"
    showProblems(this.form, this.problems.filter(({ isMissing }) => !isMissing || this.tried));
    const list = this.querySelector("[data-problems]");
    const wrong = this.problems.filter(({ isMissing }) => !isMissing);
    list.hidden = wrong.length === 0;
    list.replaceChildren(...wrong.map(({ field, message }) => h("li", {},
      hasField(this.form, field) ? h("button.link", { type: "button", "data-go": field }, labelOf(this.form, field)) : null,
      hasField(this.form, field) ? `: ${message}` : message)));
    this.#showOutlook();
  }

  /** How it will go, or what is missing. */
  #showOutlook() {
    const count = this.problems.length;
    const mayNot = "mayNotWrite" in this.dataset;
    const missing = this.problems.every(({ isMissing }) => isMissing) && this.problems[0]?.message;
    setText(this.button.lastChild, missing || (count ? tn("Fix one thing first", "Fix %(num)s things first", count) : t("Queue this run")));
    this.button.setAttribute("aria-disabled", String(mayNot));
    this.button.classList.toggle("primary", count === 0); // with problems it leads to the first of them
    const { text, waits } = outlook(this.machines, this.body.devices ?? "auto");
    const line = this.querySelector("[data-outlook]");
    line.dataset.waits = String(waits);
    setText(line, mayNot ? t("You may look at everything here, but not start runs. Ask an admin for the role member.")
      : count ? t("Everything that you typed is kept.") : text);
  }

  /** Other options, same texts: what both stages know stays, and what only one knows comes back with it. */
  async #switchStage(before = this.state.stage) {
    const stage = this.form.elements.stage.value;
    const params = query(this.state, this.specs, this.dataset.clone);
    const known = { ...this.remembered, dataset_id: this.datasets[stage] ?? this.state.dataset_id };
    for (const [name, text] of Object.entries(known)) if (text) params.set(name, text);
    params.set("stage", stage);
    params.set("part", "stage");
    this.asking?.abort();
    const switching = (this.switching = {});
    this.#freeze(true);
    this.card.wait();
    try {
      const response = await fetch(`/runs/new?${params}`, { headers: { Accept: "text/html" } });
      if (!response.ok) throw new Error(String(response.status));
      const html = await response.text();
      if (this.switching !== switching) return;
      this.tried = false;
      replaceParts(this.form, new DOMParser().parseFromString(html, "text/html"));
      this.#failure(null);
    } catch (error) {
      if (this.switching !== switching) return;
      this.form.querySelector(`[name=stage][value="${before}"]`).checked = true;
      this.#failure({ message: t("The options of this stage could not be loaded."), hint: t("Try again in a moment; nothing is lost.") });
    }
    this.#freeze(false);
    this.#look();
    this.#ask();
  }

  /** While the stage is being switched, what is shown and what is chosen do not belong together. */
  #freeze(is) {
    this.isSwitching = is;
    for (const part of this.form.querySelectorAll("[data-stage-part]")) part.inert = is;
  }

  async #queue() {
    if (this.isSwitching || "mayNotWrite" in this.dataset || this.button.hasAttribute("aria-busy")) return;
    this.#look();
    const said = JSON.stringify(this.body);
    // what the studio said of an earlier state may be mended by now: then it is the one to judge
    if (this.own.length || (this.theirs.length && said === this.judged)) {
      this.#refuse(this.theirs);
      return;
    }
    if (said !== this.said) [this.said, this.key] = [said, newKey()]; // pressed twice, or again after an error: one run
    this.#busy(true);
    this.#failure(null);
    try {
      const run = await post("/runs", this.body, { key: this.key });
      this.said = null;
      location.assign(`/runs/${run.id}`); // the button stays busy until the page is there
    } catch (error) {
      this.#busy(false);
      if (!(error instanceof ApiError)) throw error;
      if (error.status === 422) {
        this.judged = said;
        this.#refuse(problemsOf(error));
      } else {
        this.#failure(error);
      }
    }
  }

  #refuse(theirs) {
    this.tried = true;
    this.#show(theirs);
    const first = this.problems.find(({ field }) => hasField(this.form, field));
    if (first) goTo(this.form, first.field);
  }

  #busy(is) {
    if (is) this.button.setAttribute("aria-busy", "true");
    else this.button.removeAttribute("aria-busy");
  }

  #failure(error) {
    const notice = this.querySelector("[data-failure]");
    notice.hidden = error === null;
    notice.replaceChildren(...(error ? [h("p", {}, error.message, " ", h("span.hint", {}, error.hint ?? ""))] : []));
  }
}

customElements.define("run-form", RunForm);
