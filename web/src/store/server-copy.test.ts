import assert from "node:assert/strict";
import { test } from "node:test";
import { type Document, mergeDocuments } from "./server-copy";
import type { Message } from "./types";

function document(updated: number, head: string, ...ids: string[]): Document {
  const messages = ids.map((id): Message => {
    return { id, conversation: "c", parent: null, role: "user", content: `${id} of ${updated}`, created: 0, state: "done" };
  });
  const title = `at ${updated}`;
  return { title, conversation: { id: "c", title, created: 0, updated, head, system: "", effort: "high", sampling: {} }, messages };
}

test("two browsers that went on with one conversation keep both branches", () => {
  const mine = document(5, "b", "a", "b");
  const theirs = document(7, "c", "a", "c");
  for (const merged of [mergeDocuments(mine, theirs), mergeDocuments(theirs, mine)]) {
    assert.deepEqual(merged.messages.map(({ id }) => id).sort(), ["a", "b", "c"]);
    assert.equal(merged.messages.find(({ id }) => id === "a")?.content, "a of 7");
    assert.equal(merged.title, "at 7");
    assert.equal(merged.conversation.head, "c");
  }
});
