import assert from "node:assert/strict";
import { test } from "node:test";
import { type ChatDelta, deltaOf } from "../api/chat";
import type { Message } from "../store/types";
import { AnswerWriter } from "./writer";

const EMPTY: Message = {
  id: "a", conversation: "c", parent: "q", role: "assistant", content: "", created: 0, state: "writing",
};

function delta(fields: Partial<ChatDelta>): ChatDelta {
  return { reasoning: "", content: "", calls: [], ...fields };
}

function writer() {
  let time = 0;
  const made = new AnswerWriter(EMPTY, () => time);
  return { made, at: (now: number, fields: Partial<ChatDelta>) => { time = now; made.take(delta(fields)); }, wait: (now: number) => { time = now; } };
}

test("thinking is timed from its first word to the first word of the answer", () => {
  const { made, at, wait } = writer();
  at(100, {});
  at(400, { reasoning: "Let me " });
  at(900, { reasoning: "see." });
  at(1000, { content: "Forty" });
  at(1500, { content: "-two", finish: "stop" });
  wait(1600);
  const message = made.end();
  assert.equal(message.content, "Forty-two");
  assert.equal(message.reasoning, "Let me see.");
  assert.equal(message.state, "done");
  assert.deepEqual(message.figures, { firstTokenMs: 400, thinkingMs: 600, totalMs: 1600 });
});

test("the server's counts replace what was counted on the way", () => {
  const { made, at } = writer();
  const timings = { cache_n: 3, prompt_n: 5, prompt_ms: 9, prompt_per_second: 1, predicted_ms: 1, cost_usd: 0.01 };
  at(1, { reasoning: "Hm", timings: { ...timings, predicted_n: 4, predicted_per_second: 20 } });
  assert.equal(made.message.figures?.thinkingTokens, 4);
  at(2, { content: "Yes", timings: { ...timings, predicted_n: 6, predicted_per_second: 21 } });
  const usage = { prompt_tokens: 8, completion_tokens: 7, prompt_cache_hit_tokens: 3, completion_tokens_details: { reasoning_tokens: 5 } };
  at(3, { finish: "length", usage });
  const { figures, state } = made.end();
  assert.equal(state, "cut");
  assert.equal(figures?.promptTokens, 8);
  assert.equal(figures?.cachedTokens, 3);
  assert.equal(figures?.answerTokens, 7);
  assert.equal(figures?.thinkingTokens, 5);
  assert.equal(figures?.tokensPerSecond, 21);
  assert.equal(figures?.costUsd, 0.01);
});

test("calls are put together by their places", () => {
  const { made, at } = writer();
  at(1, { calls: [{ index: 0, id: "x", name: "add" }] });
  at(2, { calls: [{ index: 0, arguments: '{"a":' }] });
  at(3, { calls: [{ index: 0, arguments: "1}" }, { index: 1, id: "y", name: "sub", arguments: "{}" }] });
  assert.deepEqual(made.message.calls, [
    { id: "x", name: "add", arguments: '{"a":1}' },
    { id: "y", name: "sub", arguments: "{}" },
  ]);
});

test("an answer that broke off keeps its text and says why", () => {
  const { made, at } = writer();
  at(1, { content: "Half" });
  const message = made.end("failed", "The connection broke off.");
  assert.deepEqual([message.content, message.state, message.problem], ["Half", "failed", "The connection broke off."]);
});

test("a chunk of the server becomes a delta", () => {
  const chunk = {
    choices: [{ delta: { content: null, reasoning_content: "Hm", tool_calls: [{ index: 0, id: "x", function: { name: "f", arguments: "" } }] }, finish_reason: null }],
    usage: null,
  };
  assert.deepEqual(deltaOf(chunk), { reasoning: "Hm", content: "", calls: [{ index: 0, id: "x", name: "f" }] });
  assert.deepEqual(deltaOf({ choices: [] }), { reasoning: "", content: "", calls: [] });
});

test("an answer that is continued grows, and its figures are those of all parts", () => {
  let time = 0;
  const first = { ...EMPTY, reasoning: "Hm", content: "Forty", figures: { firstTokenMs: 300, thinkingMs: 200, totalMs: 900, answerTokens: 5, thinkingTokens: 2, costUsd: 0.01, promptTokens: 9 } };
  const made = new AnswerWriter(first, () => time);
  assert.deepEqual(made.message.figures, first.figures);
  time = 50;
  made.take(delta({ content: "-two", finish: "stop" }));
  made.take(delta({ usage: { prompt_tokens: 14, completion_tokens: 3, prompt_cache_hit_tokens: 8, completion_tokens_details: { reasoning_tokens: 0 } } }));
  time = 100;
  const message = made.end();
  assert.equal(message.content, "Forty-two");
  assert.equal(message.reasoning, "Hm");
  assert.deepEqual(message.figures, {
    firstTokenMs: 300, thinkingMs: 200, totalMs: 1000, answerTokens: 8, thinkingTokens: 2, costUsd: 0.01,
    promptTokens: 14, cachedTokens: 8,
  });
});

test("thinking that was cut goes on, and ends with the first word of the answer", () => {
  let time = 0;
  const first = { ...EMPTY, reasoning: "Let me", figures: { firstTokenMs: 10, thinkingMs: 500 } };
  const made = new AnswerWriter(first, () => time);
  time = 100;
  made.take(delta({ reasoning: " see." }));
  time = 300;
  made.take(delta({ content: "Yes." }));
  time = 900;
  made.take(delta({ content: " No." }));
  assert.equal(made.end().reasoning, "Let me see.");
  assert.equal(made.message.figures?.thinkingMs, 700);
});
