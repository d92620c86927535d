// The list of runs.

import "../elements/live-fragment.js";
