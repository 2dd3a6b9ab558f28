import assert from "node:assert/strict";
import { test } from "node:test";
import { codeText } from "./blocks";
import type { Block } from "./blocks";
import { MarkdownStream } from "./incremental";
import type { Rendering } from "./incremental";

const PIECES = [
  "A line\n", "another **bold** line\n", "\n", "\n", "# Head\n", "#tag\n", "Setext\n", "===\n", "---\n", "- one\n",
  "- two\n", "  - nested\n", "    deep\n", "  inner\n", "* star\n", "1. first\n", "2. second\n", "10) ten\n", "- [x] done\n",
  "```python\n", "```\n", "``\n", "~~~\n", "  ```js\n", "  code()\n", "    indented\n", "> quote\n", "lazy\n", "a | b\n",
  "-|-\n", "| 1 | 2 |\n", "1 | 2\n", "$$\n", "x^2\n", "\\[\n", "\\]\n", "$$ y $$\n", "text $a$ and \\(b\\)\n", "[ref]: http://a.b\n",
  "[ref] and [x](javascript:alert(1))\n", "![p](http://a.b/c.png)\n", "<b>raw</b>\n", "a<br>b\n", "http://bare.link/x\n", "***\n",
];

/** Random numbers that are the same in every run. */
function generator(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

function all({ settled, open }: Rendering): Block[] {
  return [...settled, ...open];
}

/** What a reader sees of blocks: everything but the objects that hold it. */
function seen(blocks: readonly Block[]): unknown {
  return JSON.parse(JSON.stringify(blocks, (name, value) => (PLACES.has(name) ? undefined : value)));
}

// places in the text and looseness are not drawn
const PLACES = new Set(["map", "hidden", "level"]);

function whole(text: string): Block[] {
  return all(new MarkdownStream().update(text, true));
}

test("a text that is written piece by piece ends as the text read at once", () => {
  const random = generator(7);
  for (let round = 0; round < 1500; round++) {
    const parts = Array.from({ length: 1 + Math.floor(random() * 12) }, () => PIECES[Math.floor(random() * PIECES.length)]);
    const text = parts.join("").slice(0, random() < 0.3 ? -1 : undefined);
    const stream = new MarkdownStream();
    for (let at = 0; at < text.length; at += 1 + Math.floor(random() * 9)) stream.update(text.slice(0, at), false);
    assert.deepEqual(seen(all(stream.update(text, true))), seen(whole(text)), JSON.stringify(text));
  }
});

test("while it is written it shows what the text so far would show", () => {
  const random = generator(11);
  for (let round = 0; round < 400; round++) {
    const parts = Array.from({ length: 1 + Math.floor(random() * 8) }, () => PIECES[Math.floor(random() * PIECES.length)]);
    // definitions apply to earlier text only at the end
    const text = parts.filter((part) => !part?.startsWith("[ref]:")).join("");
    const stream = new MarkdownStream();
    for (let at = 0; at <= text.length; at += 1 + Math.floor(random() * 4)) {
      const now = seen(all(stream.update(text.slice(0, at), false)));
      const fresh = seen(all(new MarkdownStream().update(text.slice(0, at), false)));
      assert.deepEqual(now, fresh, JSON.stringify(text.slice(0, at)));
    }
  }
});

test("settled blocks stay the same objects, and keys stay when a block settles", () => {
  const stream = new MarkdownStream();
  const text = "One.\n\n- a\n- b\n- c\n\nTwo.\n\n```\ncode\n```\nThree.\n";
  let before: Rendering = { settled: [], open: [] };
  for (let at = 1; at <= text.length; at++) {
    const now = stream.update(text.slice(0, at), false);
    before.settled.forEach((block, index) => assert.equal(now.settled[index], block));
    const keys = all(now).map((block) => block.key);
    assert.deepEqual(keys, keys.map((_, index) => index));
    before = { settled: [...now.settled], open: now.open };
  }
});

test("items, rows and lines of an open block are read once", () => {
  const list = new MarkdownStream();
  list.update("- a\n- b\n- c\n", false);
  const [first] = list.update("- a\n- b\n- c\n- d", false).open;
  const [second] = list.update("- a\n- b\n- c\n- d\n- e", false).open;
  assert.ok(first?.kind === "list" && second?.kind === "list");
  assert.equal(second.items.length, 5);
  assert.equal(first.items[0], second.items[0]);
  const table = new MarkdownStream();
  const head = "a | b\n--|--\n1 | 2\n";
  const [one] = table.update(head, false).open;
  const [two] = table.update(`${head}3 | 4\n5 |`, false).open;
  assert.ok(one?.kind === "table" && two?.kind === "table");
  assert.equal(two.rows.length, 3);
  assert.equal(one.rows[0], two.rows[0]);
});

test("a fence shows no part of its end, and is closed as soon as the end is there", () => {
  const stream = new MarkdownStream();
  stream.update("```py\nx = 1\n", false);
  const begun = stream.update("```py\nx = 1\n``", false).open[0];
  assert.ok(begun?.kind === "code" && !begun.closed);
  assert.equal(codeText(begun), "x = 1\n");
  assert.equal(begun.language, "py");
  const closed = stream.update("```py\nx = 1\n```\n", false).settled[0];
  assert.ok(closed?.kind === "code" && closed.closed);
});

test("a text that does not continue the last one begins anew", () => {
  const stream = new MarkdownStream();
  stream.update("# One\n\nText\n\n", false);
  assert.deepEqual(seen(all(stream.update("Other", true))), seen(whole("Other")));
});

test("line ends of other systems and null bytes", () => {
  assert.deepEqual(seen(whole("a\r\n\r\nb\rc")), seen(whole("a\n\nb\nc")));
  assert.deepEqual(seen(whole("a\0b")), seen(whole("a\ufffdb")));
});

/** How many characters the parser was given over the writing of a text. */
function readWhile(text: string, step: number): number {
  let read = 0;
  const stream = new MarkdownStream();
  // @ts-expect-error: counts what the private parser is asked
  const parser = stream.parser as { spans: (text: string, env: object) => unknown };
  const spans = parser.spans.bind(parser);
  parser.spans = (source, env) => {
    read += source.length;
    return spans(source, env);
  };
  try {
    for (let at = step; at < text.length; at += step) stream.update(text.slice(0, at), false);
    stream.update(text, true);
  } finally {
    parser.spans = spans;
  }
  return read;
}

const LONG = {
  paragraphs: "The **quick** brown fox.\n\n",
  items: "- an item of a long list\n",
  rows: "cell | other cell\n",
  code: "print('a line of code')\n",
};

for (const [name, part] of Object.entries(LONG)) {
  test(`the work for ${name} grows with the length only`, () => {
    const before = { paragraphs: "", items: "", rows: "a | b\n--|--\n", code: "```\n" }[name] ?? "";
    const read = (count: number): number => readWhile(before + part.repeat(count), 16);
    const [short, long] = [read(200), read(1600)];
    assert.ok(long / short < 9, `${short} and ${long} characters`);
  });
}
