// The form of the starter corpus: the studio writes it, the page follows.

import { DatasetForm, noLanguage } from "./dataset-form.js";

class DatasetStarter extends DatasetForm {
  /** The request's body. */
  asked() {
    const values = new FormData(this.form);
    return { name: values.get("name").trim() || undefined,
             source: { kind: "starter", part: values.get("part"), minutes: Number(values.get("minutes")),
                       languages: values.getAll("languages"), seed: Number(values.get("seed")) } };
  }

  wrong({ source }) {
    return noLanguage(source.languages);
  }
}

customElements.define("dataset-starter", DatasetStarter);
