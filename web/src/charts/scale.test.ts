import assert from "node:assert/strict";
import { test } from "node:test";
import { type Point, drawnRange, logTicks, nearest, rangeOf, smoothed, thinned, ticks } from "./scale";

test("ticks are round and inside the range", () => {
  assert.deepEqual(ticks({ low: 0, high: 10 }, 5), [0, 2, 4, 6, 8, 10]);
  assert.deepEqual(ticks({ low: -1.5, high: 3.2 }, 4), [-1, 0, 1, 2, 3]);
  assert.deepEqual(ticks({ low: 3, high: 3 }, 4), [3]);
  assert.deepEqual(logTicks({ low: 4096, high: 1048576 }), [10_000, 100_000, 1_000_000]);
  assert.deepEqual(logTicks({ low: 2, high: 5 }), [2, 5]);
});

test("a drawn range leaves out values that lie far out, and has a height", () => {
  const calm = Array.from({ length: 1000 }, (_, at) => at % 10);
  assert.ok(drawnRange([...calm, 1e9]).high < 20);
  assert.deepEqual(drawnRange([], 0), { low: 0, high: 1 });
  assert.ok(drawnRange([5, 5]).high > 5);
  assert.equal(drawnRange([1, 2], 0).low, 0);
  assert.equal(rangeOf([]), undefined);
  // a flat curve that was smoothed is not quite flat
  const flat = drawnRange([61, 61.00000000000001]);
  assert.ok(flat.high - flat.low > 5);
  assert.equal(ticks({ low: 61, high: 61.00000000000001 }, 4).length, 1);
});

test("long curves are thinned by their means", () => {
  const points: Point[] = Array.from({ length: 1000 }, (_, at) => [at, at % 2]);
  const few = thinned(points, 100);
  assert.equal(few.length, 100);
  assert.deepEqual(few[0], [9, 0.5]);
  assert.equal(thinned(points, 1000), points);
});

test("a running mean starts at the first value", () => {
  const points: Point[] = [[0, 4], [1, 4], [2, 0]];
  assert.deepEqual(smoothed(points, 0), points);
  const [a, b, c] = smoothed(points, 0.5).map(([, y]) => y);
  assert.equal(a, 4);
  assert.equal(b, 4);
  assert.ok((c ?? 9) > 1.5 && (c ?? 0) < 2);
});

test("the nearest point", () => {
  const points: Point[] = [[0, 0], [10, 0], [20, 0]];
  assert.deepEqual([-5, 4, 6, 19, 90].map((x) => nearest(points, x)), [0, 0, 1, 2, 2]);
});
