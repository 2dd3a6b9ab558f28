import assert from "node:assert/strict";
import { test } from "node:test";
import { EventParser } from "./sse";

const STREAM =
  ': keep-alive, prompt 3/9 tokens\n\ndata: {"a": 1}\n\nevent: end\r\ndata: one\r\ndata:two\r\n\r\ndata: naïve 💡\n\ndata: [DONE]\n\n';
const EVENTS = [
  { comment: "keep-alive, prompt 3/9 tokens" },
  { name: "message", data: '{"a": 1}' },
  { name: "end", data: "one\ntwo" },
  { name: "message", data: "naïve 💡" },
  { name: "message", data: "[DONE]" },
];

test("events come out the same wherever the text is cut", () => {
  for (let cut = 0; cut <= STREAM.length; cut += 1) {
    const parser = new EventParser();
    assert.deepEqual([...parser.push(STREAM.slice(0, cut)), ...parser.push(STREAM.slice(cut))], EVENTS, `cut at ${cut}`);
  }
  const parser = new EventParser();
  assert.deepEqual([...STREAM].flatMap((letter) => parser.push(letter)), EVENTS);
});

test("an event that is not closed by an empty line is not one yet", () => {
  const parser = new EventParser();
  assert.deepEqual(parser.push("data: half\n"), []);
  assert.deepEqual(parser.push("\n"), [{ name: "message", data: "half" }]);
});
