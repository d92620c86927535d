// Swagger UI, in a file of its own: it is a megabyte that only who presses "Try it out" should wait for.

import SwaggerUI from "swagger-ui-dist/swagger-ui-es-bundle.js";
import "swagger-ui-dist/swagger-ui.css";

const DESCRIPTION = "/api/v1/openapi.json";
const dark = matchMedia("(prefers-color-scheme: dark)");

/** Its colours follow a class, ours the theme that was chosen or else the system's. */
function followTheme() {
  const theme = document.documentElement.dataset.theme;
  document.documentElement.classList.toggle("dark-mode", theme ? theme === "dark" : dark.matches);
}

/** The page says all that its heading says. */
const withoutHeading = () => ({ wrapComponents: { info: () => () => null } });

/** Bodies that work, in place of ones made up from every optional field. */
function withExamples(response, examples) {
  if (!response.url.endsWith(DESCRIPTION)) return response;
  const api = JSON.parse(response.text);
  for (const [operation, example] of Object.entries(examples)) {
    const [method, path] = operation.split(" ");
    const json = api.paths[path]?.[method.toLowerCase()]?.requestBody?.content["application/json"];
    if (json) json.example = example;
  }
  return { ...response, text: JSON.stringify(api) };
}

/** Fills `element`; resolves when the API's description is shown. `examples`: "POST /path" -> body. */
export function show(element, examples) {
  followTheme();
  dark.addEventListener("change", followTheme);
  document.addEventListener("themechange", followTheme);
  return new Promise((resolve) => {
    SwaggerUI({
      domNode: element,
      url: DESCRIPTION,
      responseInterceptor: (response) => withExamples(response, examples),
      docExpansion: "none",
      defaultModelsExpandDepth: -1, // the page above describes the objects
      deepLinking: false, // the fragment belongs to that page
      // colouring writes style attributes, which the Content-Security-Policy forbids
      syntaxHighlight: false,
      validatorUrl: null, // nobody outside is told
      persistAuthorization: false,
      plugins: [withoutHeading],
      onComplete: resolve,
    });
  });
}
