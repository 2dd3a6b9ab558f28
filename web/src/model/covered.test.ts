import assert from "node:assert/strict";
import { test } from "node:test";
import type { Inspection } from "../api/admin";
import { choicesAt, coveredTokens, expertCounts, expertsSeen, isIn, sizeOf } from "./covered";

const FOUND: Inspection = {
  prompt_tokens: 2, tokens: [], finish: "stop", drafts: null, first: 1,
  experts: { 10: [[0, 3], [3, 1]], 2: [[1, 2], [1, 0]] },
  entries: { 2: [[[0, 1]], [[0, 2], [5, 6]]] },
};

test("entries cover tokens", () => {
  const ranges = coveredTokens([[0, 2], [5, 6]], 4);
  assert.deepEqual(ranges, [[0, 8], [20, 24]]);
  assert.deepEqual([0, 7, 8, 20, 24].map((token) => isIn(ranges, token)), [true, true, false, true, false]);
  assert.equal(sizeOf(ranges), 12);
});

test("the choices of a position, layers in their order", () => {
  const { experts, entries } = choicesAt(FOUND, 2);
  assert.deepEqual(experts, [{ layer: "2", chosen: [1, 0] }, { layer: "10", chosen: [3, 1] }]);
  assert.deepEqual(entries, [{ layer: "2", chosen: [[0, 2], [5, 6]] }]);
  assert.equal(choicesAt(FOUND, 0).experts[0]?.chosen, undefined);
});

test("experts are counted by layer", () => {
  assert.equal(expertsSeen(FOUND), 4);
  assert.deepEqual(expertCounts(FOUND, 4), [{ layer: "2", counts: [1, 2, 1, 0] }, { layer: "10", counts: [1, 1, 0, 2] }]);
});
