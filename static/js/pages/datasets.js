// The list of datasets and the forms that add one.

import "../elements/dataset-starter.js";
import "../elements/dataset-teacher.js";
import "../elements/live-fragment.js";
import "../elements/upload-form.js";

const LOOK_EVERY_MS = 1000;
const list = document.querySelector("live-fragment");

document.addEventListener("datasetchange", () => list.refresh());
setInterval(() => {
  if (!document.hidden && list.querySelector('[data-state="importing"]')) list.refresh();
}, LOOK_EVERY_MS);
