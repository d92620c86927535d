// Sending a file with progress, and what can be said of a file before it is sent. (fetch tells nothing of an upload's
// progress, so this is XMLHttpRequest.)

import { ApiError, errorOf } from "./api.js";
import { bytes, duration } from "./format.js";
import { t } from "./i18n.js";

export const MAX_BYTES = 64 * 2 ** 30; // what the server takes
const ARCHIVES = new Set(["tgz", "tar", "bz2", "xz", "7z", "rar", "zst"]);
const DOCUMENTS = new Set(["doc", "docx", "odt", "rtf", "pdf", "epub", "ppt", "pptx", "pages"]);
const TABLES = new Set(["xls", "xlsx", "ods", "arrow", "feather"]);
const PICTURES = new Set(["png", "jpg", "jpeg", "gif", "webp", "svg", "heic", "mp3", "wav", "ogg", "flac", "mp4", "mov",
                          "mkv", "webm", "exe", "safetensors", "gguf", "pth", "pt", "npy", "bin"]);
const PACKED = new Set(["zip", "gz"]); // the studio looks into these itself
// the first bytes of files whose name hides what they are
const BEGINNINGS = [["archive", [0x50, 0x4b, 0x03, 0x04]], ["archive", [0x1f, 0x8b]], ["archive", [0x37, 0x7a, 0xbc, 0xaf]],
                    ["document", [0x25, 0x50, 0x44, 0x46]], ["document", [0xd0, 0xcf, 0x11, 0xe0]],
                    ["table", [0x50, 0x41, 0x52, 0x31]], ["picture", [0x89, 0x50, 0x4e, 0x47]],
                    ["picture", [0xff, 0xd8, 0xff]]];

/** What kind of file this is if it is none that can be learnt from: by its name, its type and its first bytes. */
export function strangeKind({ name, type = "" }, firstBytes = new Uint8Array()) {
  const ending = name.includes(".") ? name.split(".").at(-1).toLowerCase() : "";
  if (ARCHIVES.has(ending)) return "archive";
  if (DOCUMENTS.has(ending)) return "document";
  if (TABLES.has(ending)) return "table";
  if (PICTURES.has(ending) || /^(image|audio|video|font)\//.test(type)) return "picture";
  if (PACKED.has(ending) || ending === "parquet") return null;
  return BEGINNINGS.find(([, bytes]) => bytes.every((byte, place) => firstBytes[place] === byte))?.[0] ?? null;
}

/** Why a file cannot be used, as `{message, hint}`; null where it is worth sending. */
export async function problemOf(file) {
  if (file.size === 0) {
    return { message: t("%(name)s is empty.", { name: file.name }),
             hint: t("Choose a file with at least one row. (A folder cannot be uploaded.)") };
  }
  if (file.size > MAX_BYTES) {
    return { message: t("%(name)s is larger than 64 GiB.", { name: file.name }), hint: t("Split it into several files.") };
  }
  let firstBytes;
  try {
    firstBytes = new Uint8Array(await file.slice(0, 8).arrayBuffer());
  } catch {
    return { message: t("%(name)s cannot be read.", { name: file.name }),
             hint: t("Was it moved or deleted, or is it a folder? Choose it again.") };
  }
  const said = {
    archive: [t("%(name)s is an archive, not text.", { name: file.name }),
              t("Unpack it and upload what is inside, or pack it as .zip or .gz.")],
    document: [t("%(name)s is a document, not plain text.", { name: file.name }),
               t("Export it as .txt or .jsonl and upload that.")],
    table: [t("%(name)s is a table, which this version does not read.", { name: file.name }),
            t("Export it as .csv, or as .jsonl: one JSON object a line.")],
    picture: [t("%(name)s is not text.", { name: file.name }), t("Models here learn from .jsonl, .json, .csv, .tsv and .txt files.")],
  }[strangeKind(file, firstBytes)];
  return said ? { message: said[0], hint: said[1] } : null;
}

const WINDOW_S = 5;

/** How fast something goes on, from the last seconds only: a start or a pause long ago does not count. */
export class Rate {
  #samples = [];

  /** `time` in seconds. */
  add(done, time) {
    this.#samples.push([time, done]);
    while (this.#samples.length > 2 && this.#samples[0][0] < time - WINDOW_S) this.#samples.shift();
  }

  /** Units a second; null until it can be said. */
  get perSecond() {
    const [first, last] = [this.#samples[0], this.#samples.at(-1)];
    if (!first || last[0] - first[0] < 0.3) return null;
    return Math.max(0, (last[1] - first[1]) / (last[0] - first[0]));
  }

  /** Seconds until `total`; null while nothing moves. */
  left(total) {
    const speed = this.perSecond;
    return speed ? Math.max(0, total - this.#samples.at(-1)[1]) / speed : null;
  }
}

/** How far a sending is, in words. */
export function sendingWords(rate, sent, total) {
  return sent >= total ? t("Sent. The studio is putting it away.") : progressWords(rate, sent, total);
}

/** How far something is that counts bytes: "3 MB of 9 MB · 1 MB a second · 6 s left". */
export function progressWords(rate, done, total) {
  const words = [t("%(done)s of %(total)s", { done: bytes(done), total: bytes(total) })];
  if (rate.perSecond) words.push(t("%(speed)s a second", { speed: bytes(rate.perSecond) }));
  const left = done < total ? rate.left(total) : null;
  if (left !== null) words.push(t("%(time)s left", { time: duration(left) }));
  return words.join(" · ");
}

/**
 * Upload `file` (or several) with `fields`, as a new dataset unless `path` says otherwise. `onProgress(sent, total)`
 * counts bytes of the request. Returns `{ done, cancel }`; `done` resolves to the answer, or rejects with an ApiError (AbortError when cancelled).
 */
export function send(file, fields, { key, path = "/datasets", onProgress = () => {}, Request = globalThis.XMLHttpRequest } = {}) {
  const request = new Request();
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) if (value) body.append(name, value);
  const files = [file].flat();
  const size = files.reduce((sum, one) => sum + one.size, 0);
  for (const one of files) body.append("file", one, one.name);
  const done = new Promise((resolve, reject) => {
    request.upload.addEventListener("progress", (event) => onProgress(event.loaded, event.lengthComputable ? event.total : size));
    request.addEventListener("load", async () => {
      const response = new Response(request.responseText, { status: request.status });
      try {
        if (!response.ok) throw await errorOf(response);
        resolve(await response.json());
      } catch (error) {
        reject(error);
      }
    });
    request.addEventListener("error", () => reject(new ApiError(0, {
      message: t("The connection broke off before the file was sent."),
      hint: t("Is the studio running, and is the file still where it was? Try again; nothing is stored twice.") })));
    request.addEventListener("abort", () => reject(new DOMException("Cancelled", "AbortError")));
    request.open("POST", `/api/v1${path}`);
    request.setRequestHeader("Accept", "application/json");
    if (key) request.setRequestHeader("Idempotency-Key", key);
    request.send(body);
  });
  return { done, cancel: () => request.abort() };
}
