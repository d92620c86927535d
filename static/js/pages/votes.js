// Votes: who wins, and what to learn from them.

import "../elements/compare-votes.js";
