// The page of one run.

import "../elements/checkpoint-export.js";
import "../elements/live-fragment.js";
import "../elements/log-tail.js";
import "../elements/queue-control.js";
import { bindDialogs } from "../elements/run-actions.js";
import "../elements/run-charts.js";
import "../elements/sample-timeline.js";

bindDialogs();
