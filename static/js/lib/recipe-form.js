// A recipe as its form holds it, and as the API wants it.

/** Body of POST /pipelines: empty fields are left to the recipe. */
export function bodyOf({ recipe, minutes, language, preset }, name) {
  return {
    recipe, name,
    ...(minutes === "" ? {} : { minutes: Number(minutes) }),
    ...(language ? { languages: [language] } : {}),
    ...(preset ? { preset } : {}),
  };
}

/** Minutes of a stage that has this share of them all; one decimal is as exact as anybody plans. */
export function minutesOf(share, minutes) {
  return Math.round(share * minutes * 10) / 10;
}
