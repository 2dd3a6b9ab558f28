import assert from "node:assert/strict";
import { test } from "node:test";
import { curve, joined, lastKnown, speedNow } from "./rates";

const news = (now: number, seconds: [number, number, number][]) => ({ now, kept: 10, seconds });

test("new seconds replace the one that was not over, old ones go", () => {
  const first = joined([], news(100, [[95, 1, 0], [100, 0, 2]]));
  assert.equal(lastKnown(first), 99);
  const second = joined(first, news(103, [[100, 0, 5], [102, 0, 1]]));
  assert.deepEqual(second, [[95, 1, 0], [100, 0, 5], [102, 0, 1]]);
  assert.deepEqual(joined(second, news(106, [])).map(([at]) => at), [100, 102]);
  assert.equal(lastKnown([]), 0);
});

test("a curve has a point for each second, zero without tokens, and ends before the running second", () => {
  const points = curve([[97, 3, 0], [99, 6, 0], [100, 50, 0]], 100, 5, 1);
  assert.deepEqual(points, [[-4, 0], [-3, 0], [-2, 3], [-1, 0], [-0, 6]].map(([x, y]) => [x === 0 ? -0 : x, y]));
});

test("a long span is a curve of means", () => {
  const points = curve(Array.from({ length: 900 }, (_, at) => [at, 2, 0] as [number, number, number]), 900, 900, 1);
  assert.equal(points.length, 150);
  assert.ok(points.every(([, y]) => y === 2));
});

test("the speed now is that of whole seconds", () => {
  assert.equal(speedNow([[95, 0, 10], [98, 0, 15], [100, 0, 99]], 100, 2), 5);
});
