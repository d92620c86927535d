// The recipes, and the form for a pipeline.

import "../elements/pipeline-form.js";
import "../elements/recipe-starter.js";
