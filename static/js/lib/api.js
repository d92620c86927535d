// Requests to the studio's REST API. Every failure is an ApiError whose message is a sentence for the user.

import { t } from "./i18n.js";

export class ApiError extends Error {
  /** @param {number} status 0 where the studio did not answer */
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.code = error.code ?? "";
    this.field = error.field ?? null;
    this.hint = error.hint ?? "";
    /** @type {{field: string|null, message: string, hint: string|null}[]} */
    this.problems = error.problems ?? [];
  }
}

/** The error of an answer that is not a success, whatever its body is. */
export async function errorOf(response) {
  let error = null;
  try {
    error = (await response.json()).error;
  } catch {
    error = null; // a proxy's page, or half an answer: its status is all that we know
  }
  if (response.status === 401) {
    error = { ...error, message: t("You are not logged in any more."),
              hint: t("Open the address that ./studio up printed, or log in again.") };
  }
  return new ApiError(response.status, error ?? { message: t("The studio answered with status %(status)s.", { status: response.status }) });
}

/** A key that makes a repeated POST harmless. */
export function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
}

/**
 * One request; the parsed answer, or null where there is no content.
 * `path` begins behind /api/v1, or with /v1/. `body` is sent as JSON unless it is FormData.
 */
export async function api(method, path, { body, signal, key, keepalive } = {}) {
  const headers = { Accept: "application/json" };
  if (body !== undefined && !(body instanceof FormData)) headers["Content-Type"] = "application/json";
  if (key) headers["Idempotency-Key"] = key;
  let response;
  try {
    response = await fetch(path.startsWith("/v1/") ? path : `/api/v1${path}`, {
      method, headers, signal, keepalive, credentials: "same-origin",
      body: body === undefined || body instanceof FormData ? body : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: t("The studio does not answer."),
                            hint: t("Is it still running? What you see stays; it is tried again by itself.") });
  }
  if (!response.ok) throw await errorOf(response);
  return response.status === 204 ? null : response.json();
}

export const get = (path, options) => api("GET", path, options);
export const post = (path, body, options) => api("POST", path, { body, ...options });
export const patch = (path, body, options) => api("PATCH", path, { body, ...options });
export const remove = (path, options) => api("DELETE", path, options);
