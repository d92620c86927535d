// The system page: what the websocket tells comes at once; whether broker and chat answer is asked now and then.

import "../elements/copy-button.js";
import "../elements/live-fragment.js";
import { bindQueueDialog } from "../elements/queue-control.js";
import "../elements/system-live.js";

const ASK_EVERY_MS = 10_000;

bindQueueDialog();

setInterval(() => document.hidden || document.querySelector("live-fragment")?.refresh(), ASK_EVERY_MS);
