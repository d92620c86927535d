// The pattern page: the few pieces that need a script to be seen.

import "../elements/copy-button.js";
import { toast, toastError } from "../elements/toast-stack.js";

const HINT = "What to do about it, in a sentence that is long enough to need a second line. 中文也可以。";

document.querySelector("main").addEventListener("click", (event) => {
  const button = event.target.closest("[data-toast], [data-opens]");
  if (!button) return;
  if (button.dataset.opens) document.getElementById(button.dataset.opens).showModal();
  else if (button.dataset.toast === "good") toast("Saved.");
  else toastError({ message: "The studio does not answer.", hint: HINT });
});
