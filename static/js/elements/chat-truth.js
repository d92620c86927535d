// A page that is left hands over what is not saved; one that is looked at again shows what was kept meanwhile.

const AFTER_RELOAD_MS = 700; // what a page saves as it is left may come behind the reload

/** @param {import("../lib/conversation.js").Keeper} keeper */
export function stayTruthful(keeper, { isBusy, show }) {
  const look = async () => {
    const theirs = isBusy() || document.hidden ? null : await keeper.refresh();
    if (theirs) show(theirs);
  };
  document.addEventListener("visibilitychange", look);
  window.addEventListener("focus", look);
  window.addEventListener("pageshow", () => setTimeout(look, AFTER_RELOAD_MS));
  window.addEventListener("online", () => keeper.retry());
  window.addEventListener("pagehide", () => keeper.leave());
  window.addEventListener("beforeunload", (event) => {
    keeper.leave(); // a reload asks for the page right after this
    if (["failed", "conflict"].includes(keeper.state)) event.preventDefault();
  });
}
