// The form of a new run.

import "../elements/copy-button.js";
import "../elements/preflight-card.js";
import "../elements/run-form.js";
