// Talking with a checkpoint.

import "../elements/chat-page.js";
