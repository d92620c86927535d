// Renaming and deleting the open conversation: bindDialogs(page, {rename(title), remove()}).

import { isComposing } from "../lib/dom.js";
import { t } from "../lib/i18n.js";

export function bindDialogs(page, { title, rename, remove }) {
  page.addEventListener("click", (event) => {
    const opener = event.target.closest("[data-dialog]");
    if (opener) {
      const dialog = page.querySelector(`#${opener.dataset.dialog}`);
      const field = dialog.querySelector("[name=title]");
      if (field) field.value = title();
      dialog.showModal();
      field?.select();
    }
    if (event.target.closest("[data-close]")) event.target.closest("dialog").close();
    else if (event.target.nodeName === "DIALOG" && isOutside(event)) event.target.close();
  });
  page.addEventListener("keydown", (event) => {
    // Safari hands over the Enter that ends a word when the word has ended already, and would send the form
    if (event.key === "Enter" && isComposing(event) && event.target.closest("dialog")) event.preventDefault();
  });
  page.querySelector("[data-rename]").addEventListener("submit", (event) => {
    const wanted = new FormData(event.target).get("title").replace(/\s+/g, " ").trim();
    if (wanted) rename(wanted);
  });
  page.querySelector("[data-delete]").addEventListener("submit", async (event) => {
    event.preventDefault();
    const form = event.target;
    const button = form.querySelector("[type=submit]");
    const said = form.querySelector(".field-error");
    said.textContent = "";
    button.setAttribute("aria-busy", "true");
    button.disabled = true;
    try {
      await remove();
    } catch (error) {
      said.textContent = [t("It could not be deleted."), error.message].join(" ");
      button.disabled = false;
      button.removeAttribute("aria-busy");
    }
  });
}

/** A click on the backdrop is one on the dialog itself, outside its box. */
function isOutside({ target, clientX, clientY }) {
  const box = target.getBoundingClientRect();
  return clientX < box.left || clientX > box.right || clientY < box.top || clientY > box.bottom;
}
