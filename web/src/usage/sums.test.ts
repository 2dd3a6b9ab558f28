import assert from "node:assert/strict";
import { test } from "node:test";
import type { UsageRow } from "../api/admin";
import { OTHERS, byDay, daysBetween, grouped, named, sumOf } from "./sums";

const row = (day: string, key: string, model: string, prompt: number): UsageRow => ({
  day, key, model, prompt, requests: 1, cached: prompt / 2, completion: 10, reasoning: 4, cost: prompt / 1000,
});
const ROWS = [
  row("2026-11-20", "ann", "nano", 100),
  row("2026-11-20", "bob", "flash", 400),
  row("2026-11-22", "ann", "flash", 50),
  row("2026-11-22", "cid", "pro", 1),
];

test("rows add up, whole and by a name", () => {
  assert.deepEqual(sumOf(ROWS), { requests: 4, prompt: 551, cached: 275.5, completion: 40, reasoning: 16, cost: 0.551 });
  assert.deepEqual(grouped(ROWS, "key", "prompt").map(({ name, sums }) => [name, sums.prompt]), [["bob", 400], ["ann", 150], ["cid", 1]]);
});

test("days without a row stand between those with one", () => {
  assert.deepEqual(daysBetween("2026-11-20", "2026-11-22", 9), ["2026-11-20", "2026-11-21", "2026-11-22"]);
  assert.deepEqual(daysBetween("2026-02-27", "2026-03-01", 2), ["2026-02-28", "2026-03-01"]);
});

test("few names have a column, the others share one", () => {
  const names = named(ROWS, "model", "prompt", 2);
  assert.deepEqual(names, ["flash", OTHERS]);
  const table = byDay(ROWS, ["2026-11-20", "2026-11-21", "2026-11-22"], "model", names, (one) => one.prompt);
  assert.deepEqual(table, [[400, 100], [0, 0], [50, 1]]);
});
