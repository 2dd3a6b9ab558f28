import assert from "node:assert/strict";
import { test } from "node:test";
import type { ComponentChildren, VNode } from "preact";
import { elementsOf } from "./elements";
import { MarkdownParser, isSafeAddress } from "./parser";

const parser = new MarkdownParser();

type Properties = Record<string, unknown> & { children?: ComponentChildren };

/** Nodes as text like HTML, components by their name and properties; an attribute that is undefined is none. */
function shown(node: ComponentChildren): string {
  if (node === null || node === undefined || typeof node === "boolean") return "";
  if (typeof node !== "object") return String(node).replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  if (Array.isArray(node)) return node.map(shown).join("");
  const { type, props } = node as VNode<Properties>;
  const { children, ...rest } = props;
  const attributes = Object.entries(rest).filter(([, value]) => value !== undefined && value !== false);
  const name = typeof type === "string" ? type : type.name;
  const list = attributes.map(([key, value]) => ` ${key}=${JSON.stringify(value)}`).join("");
  return `<${name}${list}>${shown(children)}</${name}>`;
}

function html(text: string): string {
  const env = {};
  return parser.spans(text, env).map(({ tokens }) => shown(elementsOf(parser.inline(tokens, env)))).join("");
}

const formula = (source: string, display = false): string =>
  `<Maths source=${JSON.stringify(source)}${display ? " display=true" : ""}></Maths>`;
const paragraph = (inner: string): string => `<p>${inner}</p>`;

test("HTML of a model is text", () => {
  const attack = '<img src=x onerror="alert(1)"><script>alert(1)</script>';
  assert.equal(html(attack), paragraph(attack.replaceAll("<", "&lt;")));
  assert.equal(html("<div onclick=x>\n\n**a**"), `${paragraph("&lt;div onclick=x>")}<p><strong>a</strong></p>`);
});

const UNSAFE = [
  "javascript:alert(1)", "JaVaScRiPt:alert(1)", "java\tscript:alert(1)", "&#106;avascript:alert(1)", "vbscript:x",
  "data:text/html;base64,PHNjcmlwdD4=", "data:image/svg+xml,<svg onload=alert(1)>", "file:///etc/passwd", "//evil.example",
  "/v1/models", "blob:null/y", "\u0001javascript:alert(1)", "ftp://a.b",
];

for (const address of UNSAFE) {
  test(`no link to ${JSON.stringify(address)}`, () => {
    for (const text of [`[x](${address})`, `[x](<${address}>)`, `<${address}>`, `![x](${address})`, `[x]\n\n[x]: ${address}`]) {
      assert.doesNotMatch(html(text), /href=|src=/, text);
    }
    assert.ok(!isSafeAddress(address));
  });
}

test("links open elsewhere and tell nobody where they were", () => {
  const link = html("[a *b*](https://x.y/z?q=1)");
  assert.match(link, /^<p><a href="https:\/\/x\.y\/z\?q=1"/);
  assert.match(link, /target="_blank" rel="noopener noreferrer nofollow"/);
  assert.match(link, />a <em>b<\/em><\/a>/);
  assert.match(html("see https://x.y/z."), /<a href="https:\/\/x\.y\/z"/);
  assert.match(html("[m](mailto:a@b.c)"), /href="mailto:a@b\.c"/);
  assert.doesNotMatch(html("utils.py and 3.14 and a@b.c"), /<a/);
});

test("pictures are links: nothing is loaded", () => {
  const picture = html("![a cat](https://x.y/cat.png)");
  assert.doesNotMatch(picture, /<img/);
  assert.match(picture, /<a href="https:\/\/x\.y\/cat\.png".*>Image: a cat<\/a>/);
});

test("no attribute comes from the text", () => {
  assert.match(html('[a](https://x.y "t\\" onclick=alert(1)")'), /title="https:\/\/x\.y"/);
  assert.match(html("```\" onload=alert(1)\nx\n```"), /language="\\""/);
});

test("tables, alignment and line breaks in cells", () => {
  const table = html("| a | b |\n|:-:|--:|\n| 1<br>2 | $x$ |");
  assert.match(table, /<th class="to-center" scope="col">a<\/th><th class="to-right" scope="col">b<\/th>/);
  assert.match(table, /<td class="to-center">1<br><\/br>2<\/td><td class="to-right"><Maths source="x"><\/Maths><\/td>/);
});

test("nested lists, numbers and tasks", () => {
  assert.equal(html("- a\n  - b\n    1. c"), "<ul><li><p>a</p><ul><li><p>b</p><ol><li><p>c</p></li></ol></li></ul></li></ul>");
  assert.match(html("3. a\n4. b"), /^<ol start=3>/);
  assert.match(html("- [x] a\n- [ ] b"), /checked=true disabled=true aria-label="done".*aria-label="to do"/);
});

test("a fence in a list keeps its lines and its place", () => {
  const text = "1. first:\n   ```python\n   if x:\n       y()\n   ```\n2. second";
  assert.match(html(text), /<CodeView runs=\[\] rest="if x:\\n {4}y\(\)\\n" language="python" closed=true>/);
  assert.match(html(text), /<\/CodeView><\/li><li><p>second<\/p><\/li><\/ol>$/);
});

test("headings stand below those of the page", () => {
  assert.match(html("# a\n\n## b\n\n###### c"), /<h3 class="heading-1">a<\/h3><h4 class="heading-2">b<\/h4><h6/);
});

test("maths in its four forms", () => {
  assert.equal(html("so $a_1 + b_2$ holds"), paragraph(`so ${formula("a_1 + b_2")} holds`));
  assert.equal(html("so \\(a*b*c\\) holds"), paragraph(`so ${formula("a*b*c")} holds`));
  assert.equal(html("$$\nx^2\n\\text{if } y\n$$"), formula("x^2\n\\text{if } y", true));
  assert.equal(html("\\[ x^2 \\]"), formula("x^2", true));
  assert.equal(html("so $$x$$ and \\[y\\] here"), paragraph(`so ${formula("x", true)} and ${formula("y", true)} here`));
  assert.equal(html("- item\n\n  $$\n  x\n  $$"), `<ul><li><p>item</p>${formula("x", true)}</li></ul>`);
  assert.equal(html("a line\n\\[\nx\n\\]\nmore"), `${paragraph("a line")}${formula("x", true)}${paragraph("more")}`);
  assert.equal(html("$a \\$ b$"), paragraph(formula("a \\$ b")));
});

for (const money of ["$5 and $6", "from $5 to $10, or US$7", "costs $5-$10", "$HOME and $PATH", "a $ b $ c", "\\$a$", "$$", "$"]) {
  test(`no maths: ${money}`, () => assert.doesNotMatch(html(money), /Maths/));
}

test("dollars in code are code", () => {
  assert.equal(html("`$a$`"), paragraph("<code>$a$</code>"));
});

test("a block of maths without an end is maths only while it is written", () => {
  const text = "$$\na\n- b";
  const [span] = parser.spans(text, { streaming: true });
  assert.equal(span?.tokens[0]?.type, "maths_block");
  assert.deepEqual(span?.tokens[0]?.meta, { display: true, open: true });
  assert.doesNotMatch(html(text), /Maths/);
});

const LOOPS = ["[", "![", "*", "**a", "_a*", "`", "$", "$a ", "\\(", "\\[\n", "$$a\n", "<", "&", "~~a", "| ", "http://", "> ", "- "];

for (const loop of LOOPS) {
  test(`a model that repeats ${JSON.stringify(loop)} costs little`, () => {
    const time = (length: number): number => {
      const began = performance.now();
      html(loop.repeat(length / loop.length));
      return performance.now() - began;
    };
    time(1000);
    // generous: other processes share the machine; the quadratic page needed 26 s for 64,000 characters
    assert.ok(time(64_000) < 5000);
  });
}
