// What every page has: menu, colours, language, local times, the word about the connection, drafts that go along.

import "../elements/connection-banner.js";
import "../elements/toast-stack.js";
import { localTimes } from "../lib/dom.js";
import { takeDrafts } from "../lib/drafts.js";

const YEAR_S = 31_536_000;

function keep(cookie, value) {
  document.cookie = `${cookie}=${value}; Path=/; Max-Age=${YEAR_S}; SameSite=Strict`;
}

const menu = document.querySelector("[data-menu-button]");
menu?.addEventListener("click", () => {
  const shell = document.querySelector(".shell");
  const opens = shell.dataset.menu !== "open";
  shell.dataset.menu = opens ? "open" : "";
  menu.setAttribute("aria-expanded", String(opens));
});

document.querySelector("[data-theme-select]")?.addEventListener("change", (event) => {
  const theme = event.target.value;
  keep("studio_theme", theme);
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  document.dispatchEvent(new CustomEvent("themechange"));
});

document.querySelector("[data-language-select]")?.addEventListener("change", (event) => {
  keep("studio_language", event.target.value);
  location.reload();
});

localTimes(document);
takeDrafts();
