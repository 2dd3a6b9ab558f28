import assert from "node:assert/strict";
import { test } from "node:test";
import type { Conversation } from "../store/types";
import { groupByDay } from "./days";

test("days are those of the calendar", () => {
  const now = new Date(2026, 10, 26, 9, 0);
  const at = (id: string, ...when: [number, number, number, number]): Conversation => {
    const time = new Date(...when).getTime();
    return { id, title: id, created: time, updated: time, head: null, system: "", effort: "high", sampling: {} };
  };
  const list = [at("a", 2026, 10, 26, 0), at("b", 2026, 10, 25, 23), at("c", 2026, 10, 20, 12), at("d", 2025, 1, 1, 0)];
  const groups = groupByDay(list, now).map(({ name, list: grouped }) => `${name}: ${grouped.map(({ id }) => id)}`);
  assert.deepEqual(groups, ["Today: a", "Yesterday: b", "Last 7 days: c", "Older: d"]);
  assert.deepEqual(groupByDay([], now), []);
});
