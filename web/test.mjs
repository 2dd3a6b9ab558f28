// Runs the unit tests, src/**/*.test.ts, with node's own runner: `node test.mjs [WORD ...]` takes those whose path has
// one of the words.

import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import * as esbuild from "esbuild";

const HERE = dirname(fileURLToPath(import.meta.url));
const words = process.argv.slice(2);
const tests = readdirSync(join(HERE, "src"), { recursive: true })
  .filter((name) => /\.test\.tsx?$/.test(name))
  .filter((name) => words.length === 0 || words.some((word) => name.includes(word)))
  .sort();
if (tests.length === 0) {
  console.error("no test has such a name");
  process.exit(1);
}
/** "x.mjs?url" is the address of a file, as it is on the pages. pdf.js has a build of its own for node. */
const addresses = {
  name: "addresses",
  setup(build) {
    build.onResolve({ filter: /^pdfjs-dist$/ }, () => ({ path: "pdfjs-dist/legacy/build/pdf.mjs", external: true }));
    build.onResolve({ filter: /\?url$/ }, (args) => ({ path: args.path.slice(0, -"?url".length), namespace: "address" }));
    build.onLoad({ filter: /.*/, namespace: "address" }, (args) => {
      return { contents: `export default import.meta.resolve(${JSON.stringify(args.path)})` };
    });
  },
};
// inside the folder, so that node finds the packages that tests leave outside the bundle
const out = mkdtempSync(join(HERE, ".tests-"));
try {
  await esbuild.build({
    entryPoints: tests.map((name) => join(HERE, "src", name)),
    outdir: out,
    outbase: join(HERE, "src"),
    outExtension: { ".js": ".mjs" },
    bundle: true,
    platform: "node",
    format: "esm",
    splitting: true,
    packages: "external",
    loader: { ".css": "empty" },
    plugins: [addresses],
    jsx: "automatic",
    jsxImportSource: "preact",
    sourcemap: "inline",
    logLevel: "warning",
  });
  const files = tests.map((name) => join(out, name.replace(/\.tsx?$/, ".mjs")));
  const flags = ["--enable-source-maps", "--test", ...files];
  process.exitCode = spawnSync(process.execPath, flags, { stdio: "inherit", cwd: HERE }).status ?? 1;
} finally {
  rmSync(out, { recursive: true, force: true });
}
