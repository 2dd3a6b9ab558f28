import assert from "node:assert/strict";
import { test } from "node:test";
import { groupsOf, numberKeys, pointsOf } from "./metrics";

const LINES = [
  { step: 0, tokens: 10, phase: "dense", next: 2, lr: 0.1, qat: false, spike: null },
  { step: 1, tokens: 20, next: 9, spike: "loss", back_to: 0 },
  { step: 1, tokens: 20, next: 1, lr: 0.2, "reward.math.high": 0.5, "reward.math.max": 0.1, "kl.math": 1, "env.turns": 1, odd_one: 3 },
];

test("numbers of a log become keys", () => {
  assert.deepEqual(numberKeys(LINES), ["next", "lr", "reward.math.high", "reward.math.max", "kl.math", "env.turns", "odd_one"]);
});

test("charts of one run join the numbers of a family", () => {
  const groups = groupsOf(numberKeys(LINES), false);
  assert.deepEqual(groups.map(({ title }) => title), ["Rewards", "Loss", "Steps", "Environment", "More"]);
  assert.deepEqual(groups[0]?.charts, [
    { title: "reward: math", keys: [{ key: "reward.math.high", name: "high" }, { key: "reward.math.max", name: "max" }] },
  ]);
  assert.deepEqual(groups[1]?.charts.map(({ title }) => title), ["next token", "KL by part"]);
  assert.deepEqual(groups[3]?.charts, [{ title: "turns", keys: [{ key: "env.turns" }] }]);
  assert.deepEqual(groups[4]?.charts, [{ title: "odd one", keys: [{ key: "odd_one" }] }]);
});

test("charts of several runs hold one number each", () => {
  const [rewards] = groupsOf(numberKeys(LINES), true);
  assert.deepEqual(rewards?.charts.map(({ title }) => title), ["reward: math, high", "reward: math, max"]);
});

test("a curve leaves out what a spike took back", () => {
  assert.deepEqual(pointsOf(LINES, "next", "tokens"), [[10, 2], [20, 1]]);
  assert.deepEqual(pointsOf(LINES, "lr", "step"), [[0, 0.1], [1, 0.2]]);
});
