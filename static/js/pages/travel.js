// Sliding through the checkpoints of a run with one prompt.

import "../elements/travel-page.js";
