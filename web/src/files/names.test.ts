import assert from "node:assert/strict";
import { test } from "node:test";
import { otherName, safeName, sizeText } from "./names";

const HOSTILE: [name: string, shown: string][] = [
  ["report.txt", "report.txt"],
  ["../../etc/passwd", "passwd"],
  ["C:\\Users\\ann\\notes.md", "notes.md"],
  ["invoice\u202Etxt.exe", "invoicetxt.exe"],
  ["a\u200B\u2066b\uFEFF.txt", "ab.txt"],
  ["two\nlines\t.txt", "twolines.txt"],
  ["  spaces   inside .txt ", "spaces inside .txt"],
  ["\u0000\u001b[31m.txt", "[31m.txt"],
  ["..", "file without a name"],
  ["", "file without a name"],
  ["\u202E", "file without a name"],
  ['<img src=x onerror="alert(1)">.txt', '<img src=x onerror="alert(1)">.txt'],
  ["naïve 日本 💡.md", "naïve 日本 💡.md"],
];

for (const [name, shown] of HOSTILE) {
  test(`the name ${JSON.stringify(name)}`, () => assert.equal(safeName(name), shown));
}

test("long names are cut in the middle, between characters", () => {
  const name = safeName(`${"💡".repeat(300)}.python`);
  assert.equal([...name].length, 120);
  assert.ok(name.endsWith(".python"));
  assert.ok(!/\p{Cs}/u.test(name));
});

test("names that are taken get a number", () => {
  assert.equal(otherName("a.txt", new Set()), "a.txt");
  assert.equal(otherName("a.txt", new Set(["a.txt", "a (2).txt"])), "a (3).txt");
  assert.equal(otherName("Makefile", new Set(["Makefile"])), "Makefile (2)");
});

test("sizes", () => {
  assert.deepEqual([0, 999, 1499, 200_000, 3_250_000].map(sizeText), ["0 B", "999 B", "1 kB", "200 kB", "3.3 MB"]);
});
