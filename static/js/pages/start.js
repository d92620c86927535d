// The first-model wizard.

import "../elements/first-model.js";
