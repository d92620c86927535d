// The pattern page: the few pieces that need a script to be seen.

import "../elements/chat-message.js";
import "../elements/copy-button.js";
import "../elements/metric-chart.js";
import { toast, toastError } from "../elements/toast-stack.js";
import { MESSAGES } from "../lib/pattern-messages.js";

const STEPS = Array.from({ length: 120 }, (_, index) => index + 1);
const LOSS = STEPS.map((step) => (step === 60 ? null : 8 / Math.sqrt(step) + (step === 90 ? 4 : 0)));

const HINT = "What to do about it, in a sentence that is long enough to need a second line. 中文也可以。";

document.querySelector("main").addEventListener("click", (event) => {
  const button = event.target.closest("[data-toast], [data-opens]");
  if (!button) return;
  if (button.dataset.opens) document.getElementById(button.dataset.opens).showModal();
  else if (button.dataset.toast === "good") toast("Saved.");
  else toastError({ message: "The studio does not answer.", hint: HINT });
});

for (const isEmpty of [false, true]) {
  const chart = document.createElement("metric-chart");
  chart.className = isEmpty ? "card is-empty" : "card";
  chart.setup({ name: "pattern", label: "Loss", help: HINT, line: { at: 3, label: "3" }, series: [{ label: "loss", color: "curve-1" }] });
  document.querySelector("[data-charts]").append(chart);
  chart.draw([isEmpty ? { x: [], values: [] } : { x: STEPS, values: LOSS }],
             { isLog: false, axisLabel: "Step", range: null, marks: isEmpty ? [] : [40, 80, 120], note: isEmpty ? "…" : "120" });
}

for (const [message, view] of MESSAGES) {
  const element = document.createElement("chat-message");
  document.querySelector("[data-messages]").append(element);
  element.show(message, view);
  if (message.tokens) element.querySelector('[data-action="tokens"]').click();
}
