import assert from "node:assert/strict";
import { test } from "node:test";
import { excerptAt, excerptOf } from "./conversations";
import { type Exported, asMarkdown, readFile, writeFile } from "./exchange";

const ENTRY: Exported = {
  conversation: {
    id: "c", title: "Sums", created: 1, updated: 2, head: "a", system: "Be short.", effort: "max", sampling: { seed: 1 },
  },
  messages: [
    { id: "q", conversation: "c", parent: null, role: "user", content: "1 + 1?", created: 1, state: "done" },
    { id: "a", conversation: "c", parent: "q", role: "assistant", content: "2", created: 2, state: "writing" },
  ],
};

test("what is exported comes back under new names, with its tree", () => {
  const [back] = readFile(writeFile([ENTRY])) as [Exported];
  const [question, answer] = back.messages;
  assert.notEqual(back.conversation.id, "c");
  assert.equal(back.conversation.head, answer?.id);
  assert.equal(answer?.parent, question?.id);
  assert.equal(answer?.conversation, back.conversation.id);
  assert.equal(answer?.state, "stopped"); // nobody writes it any more
  assert.equal(back.conversation.system, "Be short.");
});

test("another file is refused with the reason", () => {
  assert.throws(() => readFile("{"), /not a JSON file/);
  assert.throws(() => readFile("[]"), /no conversations/);
  assert.throws(() => readFile('{"format": "dsv4-conversations", "version": 9, "conversations": []}'), /version 9/);
  const broken = (change: object) =>
    writeFile([{ ...ENTRY, messages: [{ ...ENTRY.messages[0], ...change } as never] }]);
  assert.throws(() => readFile(broken({ content: 5 })), /Conversation 1 of the file has a message without text/);
  assert.throws(() => readFile(broken({ role: "admin" })), /unknown role/);
  assert.throws(() => readFile(broken({ parent: "gone" })), /question is missing/);
});

test("Markdown has title, questions and answers", () => {
  const text = asMarkdown(ENTRY.conversation, ENTRY.messages);
  assert.equal(text, "# Sums\n\n## Question\n\n1 + 1?\n\n## Answer\n\n2\n");
});

test("an excerpt is what stands around", () => {
  const text = `${"a ".repeat(40)}needle\n${"b ".repeat(40)}`;
  const found = excerptAt(text, text.indexOf("needle"), 6);
  assert.match(found, /^…a .*needle b .*…$/);
  assert.equal(excerptAt("short", 0, 5), "short");
});

test("calls of tools are checked, and never bring along what may run without a question", () => {
  const message = { id: "m", parent: null, role: "assistant", content: "", created: 1, state: "done" };
  const file = (calls: unknown) => {
    const conversation = { title: "t", tools: { on: ["javascript"], servers: [], allowed: ["javascript"] } };
    return JSON.stringify({ format: "dsv4-conversations", version: 1, conversations: [{ conversation, messages: [{ ...message, calls }] }] });
  };
  const [read] = readFile(file([{ id: "c", name: "javascript", arguments: "{}" }]));
  assert.equal(read?.conversation.tools, undefined);
  for (const calls of [7, [null], [{ id: "c", name: "x" }], [{ id: 1, name: "x", arguments: "" }]]) {
    assert.throws(() => readFile(file(calls)), /a call of a tool without name or arguments/);
  }
});

test("the text and the name of a file are found too", () => {
  const message = { content: "Summarise", attachments: [{ name: "Plan.md", text: "Needle in hay" }] };
  assert.equal(excerptOf(message, "needle"), "Needle in hay");
  assert.equal(excerptOf(message, "plan"), "Plan.md");
  assert.equal(excerptOf(message, "summ"), "Summarise");
  assert.equal(excerptOf(message, "absent"), undefined);
});
