// Models side by side.

import "../elements/compare-page.js";
