// Builds the pages of the server: `node build.mjs` writes ../dsv4/server/static/app/. `--dev` keeps names readable and
// adds source maps.
//
// A style sheet that a module imports joins the one sheet of the pages, also when the module itself loads later. A
// sheet imported as "x.css?url" stays a file of its own: the module gets its address for `loadStyle`. So does a script
// imported as "x.mjs?url", for a worker.

import { createHash } from "node:crypto";
import { mkdir, readdir, rm, rename, writeFile, readFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { gzipSync } from "node:zlib";
import * as esbuild from "esbuild";

const HERE = dirname(fileURLToPath(import.meta.url));
const OUT = join(HERE, "..", "dsv4", "server", "static", "app");
const dev = process.argv.includes("--dev");
const FONTS = { ".woff2": "file", ".woff": "empty", ".ttf": "empty", ".svg": "file", ".png": "file" };

const COMMON = {
  bundle: true,
  minify: !dev,
  sourcemap: dev ? "linked" : false,
  target: ["es2022", "chrome120", "firefox121", "safari17"],
  legalComments: "none",
  loader: FONTS,
  entryNames: "[name]-[hash]",
  chunkNames: "[name]-[hash]",
  assetNames: "[name]-[hash]",
  metafile: true,
  logLevel: "warning",
  define: { "process.env.NODE_ENV": dev ? '"development"' : '"production"' },
};

/** Style sheets (each with its fonts) and scripts of workers that are imported as "x.css?url" and "x.mjs?url". */
function ownFiles(outdir) {
  return {
    name: "own-files",
    setup(build) {
      build.onResolve({ filter: /\.(css|mjs)\?url$/ }, async (args) => {
        const plain = args.path.slice(0, -"?url".length);
        const found = await build.resolve(plain, { resolveDir: args.resolveDir, kind: "import-statement" });
        return { path: found.path, namespace: "own-file", errors: found.errors };
      });
      build.onLoad({ filter: /.*/, namespace: "own-file" }, async (args) => {
        const { metafile } = await esbuild.build({ ...COMMON, entryPoints: [args.path], outdir, format: "esm" });
        const file = basename(outputOf(metafile, basename(args.path)));
        return { contents: `export default new URL(${JSON.stringify(`./${file}`)}, import.meta.url).href` };
      });
    },
  };
}

/** The scripts, split into what every page needs and what loads later; the names of the two that the page starts. */
async function buildScripts(outdir) {
  const { metafile } = await esbuild.build({
    ...COMMON,
    entryPoints: { main: join(HERE, "src/main.tsx") },
    outdir,
    format: "esm",
    splitting: true,
    jsx: "automatic",
    jsxImportSource: "preact",
    plugins: [ownFiles(outdir)],
  });
  const first = await esbuild.build({
    ...COMMON,
    entryPoints: [join(HERE, "src/shell/first-paint.ts")],
    outdir,
    format: "iife",
  });
  return { metafile, first: basename(outputOf(first.metafile, "src/shell/first-paint.ts")) };
}

/** The file that was made of an entry or a page. */
function outputOf(metafile, source) {
  return Object.keys(metafile.outputs).find((name) => metafile.outputs[name].entryPoint?.endsWith(source));
}

/** One style sheet of all that modules import, the first page's first; its name. */
async function joinSheets(metafile, outdir) {
  const sheets = Object.keys(metafile.outputs).filter((name) => name.endsWith(".css") && !name.includes(".map"));
  const ordered = sheets.sort((a, b) => Number(basename(b).startsWith("main-")) - Number(basename(a).startsWith("main-")));
  const texts = await Promise.all(ordered.map((name) => readFile(join(outdir, basename(name)), "utf8")));
  await Promise.all(ordered.map((name) => rm(join(outdir, basename(name)))));
  const text = texts.join("\n");
  const name = `style-${createHash("sha256").update(text).digest("hex").slice(0, 8).toUpperCase()}.css`;
  await writeFile(join(outdir, name), text);
  return name;
}

/** Scripts that the chat needs before it shows: the entry, the page, and what both import without waiting. */
function firstScripts(metafile) {
  const names = new Set();
  const visit = (name) => {
    if (names.has(name)) return;
    names.add(name);
    for (const { path, kind } of metafile.outputs[name].imports) if (kind === "import-statement") visit(path);
  };
  for (const source of ["src/main.tsx", "src/chat/chat-page.tsx"]) visit(outputOf(metafile, source));
  return [...names].map((name) => basename(name));
}

async function main() {
  process.chdir(HERE);
  const work = `${OUT}.new`;
  await rm(work, { recursive: true, force: true });
  await mkdir(work, { recursive: true });
  const { metafile, first } = await buildScripts(work);
  const style = await joinSheets(metafile, work);
  const scripts = firstScripts(metafile);
  const names = { STYLE: style, FIRST: first, MAIN: scripts[0] };
  const page = await readFile(join(HERE, "index.html"), "utf8");
  const early = scripts.slice(1).map((name) => `<link rel="modulepreload" href="app/${name}">\n`).join("");
  const filled = page.replace(/\{\{(\w+)\}\}/g, (_, name) => `app/${names[name]}`).replace("</head>", `${early}</head>`);
  await writeFile(join(work, "index.html"), filled);
  const weigh = async (name) => gzipSync(await readFile(join(work, name))).length;
  const weights = await Promise.all(["index.html", style, first, ...scripts].map(weigh));
  // a running server keeps what it read; a new one finds either the old or the new folder, never half of one
  await rm(OUT, { recursive: true, force: true });
  await rename(work, OUT);
  const kilobytes = weights.reduce((sum, bytes) => sum + bytes, 0) / 1000;
  const files = (await readdir(OUT)).length;
  console.log(`${files} files, the first page ${kilobytes.toFixed(0)} kB gzipped`);
}

await main();
