import assert from "node:assert/strict";
import { test } from "node:test";
import { owner, ownName, ownerOf } from "./owner";

test("a key has one owner, and two keys have two", () => {
  assert.equal(ownerOf(""), "");
  assert.equal(ownerOf("a"), "e40c292c"); // from the table of the authors of FNV
  assert.notEqual(ownerOf("secret-of-ann"), ownerOf("secret-of-bob"));
  assert.match(ownerOf("schlüssel"), /^[0-9a-f]{8}$/);
});

test("without a key names stay as they are", () => {
  assert.equal(owner, "");
  assert.equal(ownName("draft"), "draft");
  assert.equal(ownName("draft", "e40c292c"), "draft@e40c292c");
});
