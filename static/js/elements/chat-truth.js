// A page that is left hands over what is not saved; one that is looked at again shows what was kept meanwhile.

import { get, patch, post, remove } from "../lib/api.js";

const AFTER_RELOAD_MS = 700; // what a page saves as it is left may come behind the reload

/** The conversations that the studio keeps. */
export const server = {
  create: (body, key, options) => post("/conversations", body, { key, ...options }),
  change: (id, body, options) => patch(`/conversations/${id}`, body, options),
  load: (id, options) => get(`/conversations/${id}`, options),
  async remove(id) {
    try {
      await remove(`/conversations/${id}`);
    } catch (error) {
      if (error.status !== 404) throw error; // else somebody else did
    }
  },
};

/** @param {import("../lib/conversation.js").Keeper} keeper */
export function stayTruthful(keeper, { isBusy, show, seen }) {
  const look = async () => {
    const theirs = document.hidden ? null : await keeper.refresh(isBusy);
    if (theirs) show(theirs);
  };
  document.addEventListener("visibilitychange", look);
  window.addEventListener("focus", look);
  window.addEventListener("pageshow", () => setTimeout(() => look().then(seen), AFTER_RELOAD_MS));
  window.addEventListener("online", () => keeper.retry());
  window.addEventListener("pagehide", () => keeper.leave());
  window.addEventListener("beforeunload", (event) => {
    keeper.leave(); // a reload asks for the page right after this
    if (["failed", "conflict"].includes(keeper.state) && keeper.isUnsaved) event.preventDefault();
  });
}
