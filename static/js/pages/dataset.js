// One dataset.

import "../elements/dataset-checksum.js";
import "../elements/dataset-delete.js";
import "../elements/dataset-lengths.js";
import "../elements/dataset-preview.js";
import "../elements/dataset-progress.js";
import "../elements/dataset-tokenizer.js";
