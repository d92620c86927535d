// The API's documentation.

import "../elements/api-docs.js";
import "../elements/copy-button.js";
