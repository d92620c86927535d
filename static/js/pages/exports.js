// The list of exports: what is being made shows how far it is.

import "../elements/copy-button.js";
import "../elements/export-list.js";
import "../elements/live-fragment.js";
