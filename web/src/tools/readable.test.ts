import assert from "node:assert/strict";
import { test } from "node:test";
import { readableArguments, readableName } from "./readable";

test("a name cannot turn around or hide what stands beside it", () => {
  assert.equal(readableName("a\u202eb\u200bc\nd"), "a\ufffdb\ufffdc\ufffdd");
  assert.equal(readableName("x".repeat(90)).length, 81);
  assert.equal(readableName("<b>Größe</b> 日本"), "<b>Größe</b> 日本");
});

test("arguments are shown by name, and as they are while they are written", () => {
  assert.deepEqual(readableArguments('{"code": "a\\nb", "n": [1]}'), [
    { name: "code", text: "a\nb" },
    { name: "n", text: "[\n  1\n]" },
  ]);
  assert.deepEqual(readableArguments('{"code": "a'), [{ name: "", text: '{"code": "a' }]);
  assert.deepEqual(readableArguments(""), []);
  assert.deepEqual(readableArguments("[1]"), [{ name: "", text: "[1]" }]);
});
