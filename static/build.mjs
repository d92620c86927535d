// Bundles the scripts and styles of the pages into static/dist: `node static/build.mjs [--watch]`.
//
// Each static/js/pages/*.js is one entry, and so are static/css/app.css and each static/css/pages/*.css. The names of
// the files carry a hash of their content; manifest.json says which file a source became. `./studio` runs this when
// the inputs have changed.

import { createHash } from "node:crypto";
import { watch } from "node:fs";
import * as fs from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { gzip } from "node:zlib";

const STATIC = path.dirname(fileURLToPath(import.meta.url));
const ROOT = path.dirname(STATIC);
const DIST = path.join(STATIC, "dist");
const SOURCES = ["js", "css"].map((folder) => path.join(STATIC, folder));
// Firefox ESR, and the first Safari and Chrome with @layer, color-mix() and module preloading.
const TARGET = ["es2022", "chrome111", "firefox115", "safari16.4"];
const COMPRESSED = /\.(js|css|svg)$/;
const COMPRESS_FROM_BYTES = 1024;
const WATCH_PAUSE_MS = 100;

/** Every file below `folder`, as paths from the root. */
async function filesBelow(folder) {
  const entries = await fs.readdir(folder, { recursive: true, withFileTypes: true }).catch(() => []);
  const files = entries.filter((entry) => entry.isFile());
  return files.map(({ parentPath, path: older, name }) => path.relative(ROOT, path.join(parentPath ?? older, name)));
}

/** What the result depends on, as one number. worker/assets.py computes the same. */
async function inputsHash() {
  const names = ["package.json", "package-lock.json", "static/build.mjs"];
  for (const folder of SOURCES) names.push(...(await filesBelow(folder)));
  const hash = createHash("sha256");
  for (const name of names.sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)))) {
    const content = await fs.readFile(path.join(ROOT, name));
    hash.update(`${name}\0${content.length}\0`).update(content);
  }
  return hash.digest("hex");
}

async function entryPoints() {
  const folders = await Promise.all(SOURCES.map((folder) => filesBelow(path.join(folder, "pages"))));
  const isEntry = (name) => /^static\/(js\/pages\/[^/]+\.js|css\/pages\/[^/]+\.css)$/.test(name);
  return ["static/css/app.css", ...folders.flat().filter(isEntry)].sort();
}

/** "static/js/pages/run.js" -> "pages/run.js" */
const sourceName = (entry) => entry.replace(/^static\/(js|css)\//, "");
const fileName = (output) => path.posix.basename(output);

/** Outputs reached from `start` by imports of these kinds, itself not among them. */
function reached(outputs, start, kinds) {
  const found = new Set();
  const visit = (output) => {
    for (const { path: next, kind, external } of outputs[output].imports) {
      if (external || !kinds.includes(kind) || next === start || found.has(next)) continue;
      found.add(next);
      visit(next);
    }
  };
  visit(start);
  return [...found];
}

/** {"pages/run.js": {file, css, imports}, ...}: what app/rendering.py writes into the head of a page. */
function manifestOf(outputs, entries) {
  const manifest = {};
  for (const [output, { entryPoint }] of Object.entries(outputs)) {
    if (!entries.includes(entryPoint) || output.endsWith(".LEGAL.txt")) continue;
    const described = { file: fileName(output) };
    if (output.endsWith(".js")) {
      // Styles of a part that is loaded later come with the page: a script that arrives finds them there.
      const all = [output, ...reached(outputs, output, ["import-statement", "dynamic-import"])];
      const css = all.map((name) => outputs[name].cssBundle).filter(Boolean).map(fileName);
      if (css.length) described.css = [...new Set(css)];
      const imports = reached(outputs, output, ["import-statement"]).map(fileName);
      if (imports.length) described.imports = imports;
    }
    manifest[sourceName(entryPoint)] = described;
  }
  return Object.fromEntries(Object.entries(manifest).sort(([a], [b]) => (a < b ? -1 : 1)));
}

/**
 * Puts the new files beside the old ones, then replaces manifest.json in one move: a running server sees the old
 * set or the new one. The set before stays for pages that are open; older ones go.
 */
async function install(files, manifest, stamp) {
  await fs.mkdir(DIST, { recursive: true });
  const staging = await fs.mkdtemp(path.join(DIST, ".building-"));
  try {
    const place = async (name, content) => {
      await fs.writeFile(path.join(staging, name), content);
      await fs.rename(path.join(staging, name), path.join(DIST, name));
    };
    for (const [name, content] of files) await place(name, content);
    const names = [...files.keys()];
    const before = JSON.parse(await fs.readFile(path.join(DIST, ".files.json"), "utf8").catch(() => "[]"));
    await place("manifest.json", `${JSON.stringify(manifest, null, 1)}\n`);
    await place(".files.json", JSON.stringify(names));
    await place(".stamp", stamp);
    const kept = new Set([...names, ...before, "manifest.json", ".files.json", ".stamp", path.basename(staging)]);
    for (const name of await fs.readdir(DIST)) {
      if (kept.has(name) || (name.startsWith(".building-") && (await isRecent(name)))) continue;
      await fs.rm(path.join(DIST, name), { recursive: true, force: true });
    }
  } finally {
    await fs.rm(staging, { recursive: true, force: true });
  }
}

/** A folder of another build that may still be at work. */
async function isRecent(name) {
  const { mtimeMs } = await fs.stat(path.join(DIST, name)).catch(() => ({ mtimeMs: 0 }));
  return Date.now() - mtimeMs < 600_000;
}

async function build(esbuild) {
  const began = performance.now();
  const stamp = await inputsHash(); // before the files are read: a change from now on is seen as one
  const entries = await entryPoints();
  const result = await esbuild.build({
    absWorkingDir: ROOT,
    entryPoints: entries,
    outdir: "static/dist",
    entryNames: "[name]-[hash]",
    chunkNames: "[name]-[hash]",
    assetNames: "[name]-[hash]",
    bundle: true,
    splitting: true,
    format: "esm",
    minify: true,
    charset: "utf8",
    target: TARGET,
    loader: { ".svg": "file", ".png": "file", ".woff2": "file" },
    legalComments: "linked",
    metafile: true,
    write: false,
    logLevel: "warning", // also prints the errors, with the line they are in
  });
  const files = new Map();
  for (const { path: output, contents } of result.outputFiles) {
    files.set(path.basename(output), contents);
    if (COMPRESSED.test(output) && contents.length > COMPRESS_FROM_BYTES) {
      files.set(`${path.basename(output)}.gz`, await promisify(gzip)(contents, { level: 9 }));
    }
  }
  await install(files, manifestOf(result.metafile.outputs, entries), stamp);
  const bytes = result.outputFiles.reduce((sum, { contents }) => sum + contents.length, 0);
  const took = ((performance.now() - began) / 1000).toFixed(1);
  console.log(`static/dist: ${result.outputFiles.length} files, ${Math.round(bytes / 1000)} kB, in ${took} s`);
}

/** Builds again whenever something below static/js or static/css changes; an error waits for the next change. */
async function buildOnChange(esbuild) {
  let timer;
  let running = Promise.resolve();
  const again = () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      running = running.then(() => build(esbuild)).catch(report);
    }, WATCH_PAUSE_MS);
  };
  for (const folder of SOURCES) watch(folder, { recursive: true }, again);
  console.log("watching static/js and static/css; Ctrl-C ends it");
}

/** esbuild has printed its own errors already. */
function report(error) {
  if (!Array.isArray(error.errors)) console.error(`static/build.mjs: ${error.message}`);
}

async function main() {
  const esbuild = await import("esbuild").catch(() => {
    throw new Error("esbuild is not installed; run 'npm ci --ignore-scripts' in the checkout.");
  });
  const watching = process.argv.includes("--watch");
  try {
    await build(esbuild);
  } catch (error) {
    report(error);
    if (!watching) process.exitCode = 1;
  }
  if (watching) await buildOnChange(esbuild);
}

await main().catch((error) => {
  report(error);
  process.exitCode = 1;
});
