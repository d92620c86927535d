// The list of runs.

import "../elements/live-fragment.js";
import "../elements/queue-control.js";
