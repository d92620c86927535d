// How far a job of the server is: its progress in a bar and in words.

import { setText } from "./dom.js";
import { t } from "./i18n.js";
import { progressWords, Rate } from "./upload.js";

/** Follows one job: `show(bar, said, progress)` each time that it was asked. */
export class JobProgress {
  #rate = new Rate();

  show(bar, said, { done, total, unit, message } = {}) {
    const words = [message || t("Waiting for a worker")];
    if (unit === "bytes" && total) {
      this.#rate.add(done, performance.now() / 1000);
      Object.assign(bar, { max: total, value: done });
      words.push(progressWords(this.#rate, done, total));
    } else {
      bar.removeAttribute("value");
    }
    setText(said, words.join(" · "));
  }
}
