import assert from "node:assert/strict";
import { test } from "node:test";
import { FileProblem, MOST_BYTES, readFile, textOfBytes } from "./read-file";

const reading = { signal: new AbortController().signal, onStep: () => {} };

function read(...parts: BlobPart[]): Promise<string> {
  return readFile(new Blob(parts), reading);
}

test("text in UTF-8, with and without a mark, and in UTF-16", async () => {
  assert.equal(await read("naïve 日本 💡"), "naïve 日本 💡");
  assert.equal(await read(new Uint8Array([0xef, 0xbb, 0xbf, 0x61])), "a");
  assert.equal(await read(new Uint8Array([0xff, 0xfe, 0x61, 0, 0xe9, 0])), "aé");
  assert.equal(await read(new Uint8Array([0xfe, 0xff, 0, 0x61, 0, 0xe9])), "aé");
});

test("old text of Windows", async () => {
  assert.equal(await read(new Uint8Array([0x63, 0x61, 0x66, 0xe9])), "café");
});

const REFUSED: [name: string, bytes: number[], sentence: RegExp][] = [
  ["a PNG", [0x89, 0x50, 0x4e, 0x47, 0x0d], /^This is a picture, which the model cannot read\. Text, Markdown/],
  ["a zip or docx", [0x50, 0x4b, 0x03, 0x04, 0x61], /^This is an archive or an Office document/],
  ["a program", [0x7f, 0x45, 0x4c, 0x46, 0x61], /^This is a program/],
  ["null bytes", [0x61, 0, 0x62], /^This is not a text file\. Text, Markdown, code and PDF files can be attached\.$/],
  ["control characters", Array.from({ length: 200 }, (_, at) => (at % 3 === 0 ? 1 : 0x61)), /^This is not a text file/],
  ["nothing", [], /^The file is empty\.$/],
  ["white space", [0x20, 0x0a], /^The file has no text\.$/],
];

for (const [name, bytes, sentence] of REFUSED) {
  test(`${name}: refused with a sentence`, async () => {
    const failing = read(new Uint8Array(bytes));
    await assert.rejects(failing, (error: Error) => error instanceof FileProblem && sentence.test(error.message));
  });
}

test("a log with colours of the terminal is text", () => {
  assert.equal(textOfBytes(new TextEncoder().encode("\u001b[31mred\u001b[0m\n")), "\u001b[31mred\u001b[0m\n");
});

test("files that are too large are refused before they are read", async () => {
  const file = { size: MOST_BYTES + 1, arrayBuffer: () => assert.fail("it was read") } as unknown as Blob;
  await assert.rejects(readFile(file, reading), /^Error: The file has 32\.0 MB; at most 32\.0 MB can be attached\.$/);
});

test("reading ends when it is no longer wanted", async () => {
  const abort = new AbortController();
  abort.abort();
  await assert.rejects(readFile(new Blob(["text"]), { ...reading, signal: abort.signal }), { name: "AbortError" });
});
