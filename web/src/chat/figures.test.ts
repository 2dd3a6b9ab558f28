import assert from "node:assert/strict";
import { test } from "node:test";
import { figureTexts, seconds } from "./figures";

test("times are short", () => {
  assert.deepEqual([seconds(430), seconds(12_400), seconds(125_000)], ["0.4 s", "12 s", "2 min 5 s"]);
});

test("only what is known is told", () => {
  assert.deepEqual(figureTexts({}), []);
  assert.deepEqual(
    figureTexts({ answerTokens: 1240, tokensPerSecond: 38.4, firstTokenMs: 400, promptTokens: 1024, cachedTokens: 812, costUsd: 0.00031 }),
    ["1,240 tokens", "38 tokens/s", "first after 0.4 s", "prompt 1,024, 812 cached", "$0.00031"],
  );
  assert.deepEqual(figureTexts({ promptTokens: 5, costUsd: 0 }), ["prompt 5, 0 cached"]);
});

test("a time is never a zero, and a minute has 60 seconds", () => {
  assert.deepEqual([seconds(0.2), seconds(40), seconds(9_970), seconds(59_700), seconds(119_700)], ["1 ms", "40 ms", "10 s", "1 min 0 s", "2 min 0 s"]);
});
