import assert from "node:assert/strict";
import { test } from "node:test";
import { withPiece } from "./followed";

const piece = (steps: number[], more = {}) => ({
  name: "run", file: 1, next: 10 * steps.length, restarted: false, every: 1, running: true,
  lines: steps.map((step) => ({ step })), samples: [], load: null, ...more,
});

test("pieces of a log follow one another", () => {
  const first = withPiece(undefined, piece([0, 1], { restarted: true, samples: [{ step: 1 }] }));
  const second = withPiece(first, piece([2], { next: 30, samples: [{ step: 2 }] }));
  assert.deepEqual(second.lines.map(({ step }) => step), [0, 1, 2]);
  assert.deepEqual(second.samples.map(({ step }) => step), [2, 1]);
  assert.equal(second.next, 30);
  const same = withPiece(second, piece([], { next: 30, running: false }));
  assert.equal(same.lines, second.lines);
  assert.equal(same.running, false);
});

test("a log that was written anew replaces what was read", () => {
  const first = withPiece(undefined, piece([0, 1, 2]));
  const again = withPiece(first, piece([0], { restarted: true, file: 2 }));
  assert.deepEqual(again.lines.map(({ step }) => step), [0]);
  assert.equal(again.file, 2);
});
