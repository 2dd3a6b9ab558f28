import assert from "node:assert/strict";
import { test } from "node:test";
import { ago, bytes, decimalBytes, dollars, duration, percent, short, whole } from "./format";

test("counts have three digits and a unit", () => {
  const found = [0, 7, 999, 1000, 12_345, 999_499, 1_500_000, 3.2e9, 1.6e12, 0.25, 0.0123, 0.00001].map(short);
  const wanted = ["0", "7", "999", "1.00K", "12.3K", "999K", "1.50M", "3.20B", "1.60T", "0.25", "0.012", "1.0e-5"];
  assert.deepEqual(found, wanted);
});

test("bytes are in binary units", () => {
  assert.deepEqual([0, 1, 999, 1024, 3.5 * 2 ** 20, 1000 * 2 ** 20].map(bytes), [
    "0 B", "1 B", "999 B", "1.00 KiB", "3.50 MiB", "0.98 GiB",
  ]);
  assert.deepEqual([0, 2.5e10, 4e6].map(decimalBytes), ["0 B", "25 GB", "4 MB"]);
});

test("shares, sums and times", () => {
  assert.deepEqual([0, 0.0123, 0.5, 1, Number.NaN].map(percent), ["0 %", "1.2 %", "50 %", "100 %", "–"]);
  assert.deepEqual([0, 0.000012, 0.03, 12.3].map(dollars), ["$0", "$0.0000120", "$0.0300", "$12.30"]);
  assert.deepEqual([0.421, 3.21, 42, 200, 7500, 273_600].map(duration), [
    "0.42 s", "3.2 s", "42 s", "3 min 20 s", "2 h 05 min", "3 d 4 h",
  ]);
  assert.deepEqual([100, 30, -1].map((seconds) => ago(0, seconds)), ["1 min ago", "just now", "just now"]);
  assert.equal(whole(1_234_567), "1,234,567");
});
