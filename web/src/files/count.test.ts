import assert from "node:assert/strict";
import { test } from "node:test";
import { countLong, piecesOf } from "./count";

test("pieces are the text again, and end with lines or words where they can", () => {
  const lines = "a line of text\n".repeat(50);
  const pieces = piecesOf(lines, 100);
  assert.equal(pieces.join(""), lines);
  assert.ok(pieces.every((piece) => piece.endsWith("\n") && piece.length <= 100));
  const words = piecesOf("word ".repeat(50), 32);
  assert.equal(words.join(""), "word ".repeat(50));
  assert.ok(words.slice(1).every((piece) => piece.startsWith(" ")));
});

test("no character is cut in two", () => {
  const pieces = piecesOf("💡".repeat(99), 33);
  assert.equal(pieces.join(""), "💡".repeat(99));
  assert.ok(pieces.every((piece) => !/\p{Cs}/u.test(piece)));
});

test("a short text is one piece, an empty one none", () => {
  assert.deepEqual(piecesOf("short"), ["short"]);
  assert.deepEqual(piecesOf(""), []);
});

test("the sum is told after each piece", async () => {
  const sums: number[] = [];
  const text = "x\n".repeat(250_000);
  assert.equal(await countLong(text, async (piece) => piece.length / 2, (sum) => sums.push(sum)), 250_000);
  assert.deepEqual(sums, [100_000, 200_000, 250_000]);
});
