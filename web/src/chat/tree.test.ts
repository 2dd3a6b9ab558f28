import assert from "node:assert/strict";
import { test } from "node:test";
import type { Message } from "../store/types";
import { branchTo, newestEnd, siblingsOf, titleOf } from "./tree";

function message(id: string, parent: string | null, created: number, role: Message["role"] = "user"): Message {
  return { id, conversation: "c", parent, role, content: id, created, state: "done" };
}

// q1 - a1 - q2 - a2, with a second answer to q1 and a second form of q2
const LIST = [
  message("q1", null, 1), message("a1", "q1", 2, "assistant"), message("q2", "a1", 3), message("a2", "q2", 4, "assistant"),
  message("a1b", "q1", 5, "assistant"), message("q2b", "a1", 6), message("a2b", "q2b", 7, "assistant"),
];
const TREE = new Map(LIST.map((entry) => [entry.id, entry]));
const names = (list: Message[]) => list.map(({ id }) => id).join(" ");

test("a branch goes from the first message to its head", () => {
  assert.equal(names(branchTo(TREE, "a2")), "q1 a1 q2 a2");
  assert.equal(names(branchTo(TREE, "a1b")), "q1 a1b");
  assert.equal(names(branchTo(TREE, null)), "");
  assert.equal(names(branchTo(TREE, "gone")), "");
});

test("a ring of messages, as a broken file may have it, ends", () => {
  const ring = new Map([["a", message("a", "b", 1)], ["b", message("b", "a", 2)]]);
  assert.equal(branchTo(ring, "a").length, 2);
  assert.ok(newestEnd(ring, "a"));
});

test("siblings are what stands in the same place", () => {
  assert.equal(names(siblingsOf(TREE, TREE.get("a1b") as Message)), "a1 a1b");
  assert.equal(names(siblingsOf(TREE, TREE.get("q2") as Message)), "q2 q2b");
  assert.equal(names(siblingsOf(TREE, TREE.get("q1") as Message)), "q1");
});

test("another sibling leads to the end of its newest branch", () => {
  assert.equal(newestEnd(TREE, "a1"), "a2b");
  assert.equal(newestEnd(TREE, "q2"), "a2");
  assert.equal(newestEnd(TREE, "a1b"), "a1b");
});

test("a title is the first line, cut between words", () => {
  assert.equal(titleOf("\n  What is this?\nmore"), "What is this?");
  assert.equal(titleOf(""), "New chat");
  const long = titleOf("word ".repeat(40));
  assert.ok(long.length <= 61 && long.endsWith("word…"), long);
});
