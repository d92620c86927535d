// What dialogs of datasets share: buttons with data-opens open one, data-close closes it.

/** Wire the dialog of `host`; `opened()` runs each time. Returns the dialog. */
export function wireDialog(host, opened) {
  const dialog = host.querySelector("dialog");
  document.addEventListener("click", (event) => {
    if (!event.target.closest?.(`[data-opens="${dialog.id}"]`)) return;
    opened?.();
    dialog.showModal();
  });
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  return dialog;
}
