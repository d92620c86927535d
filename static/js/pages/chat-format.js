// A conversation to edit, and what a model reads of it.

import "../elements/chat-format.js";
