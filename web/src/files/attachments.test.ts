import assert from "node:assert/strict";
import { afterEach, test } from "node:test";
import { attach, attachPaste, attachments, detach, detachAll, fileTokens, filesReady, refusal, takeAttachments } from "./attachments";

type Answer = (body: { prompt: string; tokens: boolean }) => Response | Promise<Response>;

const original = globalThis.fetch;

function serve(answer: Answer): void {
  globalThis.fetch = async (_, init) => answer(JSON.parse(String(init?.body)));
}

const counting: Answer = ({ prompt, tokens }) => {
  assert.equal(tokens, false);
  return Response.json({ count: prompt.length, max_model_len: 100 });
};

afterEach(() => {
  detachAll();
  globalThis.fetch = original;
});

test("files are read, counted and taken once", async () => {
  serve(counting);
  await attach([new File(["hello"], "a.txt"), new File(["# hi"], "a.txt")]);
  assert.deepEqual(attachments.value.map(({ name, state, tokens }) => [name, state, tokens]), [
    ["a.txt", "ready", 5], ["a (2).txt", "ready", 4],
  ]);
  assert.equal(fileTokens.value, 9);
  assert.ok(filesReady.value);
  assert.deepEqual(takeAttachments(), [
    { name: "a.txt", text: "hello", tokens: 5 }, { name: "a (2).txt", text: "# hi", tokens: 4 },
  ]);
  assert.deepEqual(attachments.value, []);
});

test("a wrong kind says why and is not sent", async () => {
  serve(counting);
  await attach([new File([new Uint8Array([0x89, 0x50, 0x4e, 0x47])], "cat.png"), new File(["x"], "b.txt")]);
  assert.match(attachments.value[0]?.problem ?? "", /^This is a picture/);
  assert.deepEqual(takeAttachments().map(({ name }) => name), ["b.txt"]);
});

test("a server that cannot count does not keep a file from being sent", async () => {
  serve(() => Response.json({ error: { message: "no such route" } }, { status: 404 }));
  await attach([new File(["x"], "b.txt")]);
  assert.match(attachments.value[0]?.step ?? "", /^not counted: /);
  assert.deepEqual(takeAttachments().map(({ name, text }) => [name, text]), [["b.txt", "x"]]);
});

test("a file that is removed while it is counted stops counting", async () => {
  let asked = 0;
  serve((body) => {
    asked += 1;
    detach(attachments.value[0]?.id ?? -1);
    return counting(body);
  });
  await attach([new File(["word ".repeat(200_000)], "long.txt")]);
  assert.deepEqual([attachments.value.length, asked <= 2], [0, true]);
});

test("long pasted text becomes a file, short text does not", () => {
  serve(counting);
  assert.ok(!attachPaste("short"));
  assert.ok(attachPaste("long ".repeat(2000)));
  assert.equal(attachments.value[0]?.name, "Pasted text.txt");
});

test("too many files are refused with a sentence", async () => {
  serve(counting);
  await attach(Array.from({ length: 52 }, (_, at) => new File(["x"], `${at}.txt`)));
  assert.equal(attachments.value.length, 50);
  assert.equal(refusal.value, "At most 50 files go with one question.");
});
