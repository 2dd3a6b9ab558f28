import assert from "node:assert/strict";
import { test } from "node:test";
import { roomText } from "./room";

test("what fits", () => {
  assert.deepEqual(roomText({ used: 1000, context: 4000 }), {
    share: 0.25, full: false, text: "1,000 of 4,000 tokens, 3,000 left",
  });
  assert.match(roomText({ used: 3900, context: 4000 }).text, /100 left, little for an answer$/);
});

test("what does not fit says by how much; one token must be left for the answer", () => {
  const { full, share, text } = roomText({ used: 4000, context: 4000 });
  assert.deepEqual([full, share], [true, 1]);
  assert.equal(text, "4,000 tokens, but the context holds 4,000: 1 too many");
  assert.match(roomText({ used: 52_000, context: 3072 }).text, /: 48,929 too many$/);
});
