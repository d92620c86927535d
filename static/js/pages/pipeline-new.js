// The form for a pipeline.

import "../elements/pipeline-form.js";
