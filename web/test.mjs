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
    packages: "external",
    loader: { ".css": "empty" },
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
