"""The chat page's markdown: what it makes of a text, and that no text takes longer than its length explains."""

import json
import shutil
import subprocess

import pytest

from dsv4.server.static import PLAIN

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")

# a document of which only what markdown.js uses exists
PROGRAM = """
class Node {
  constructor(name) { this.name = name; this.children = []; }
  append(...nodes) { this.children.push(...nodes); }
  appendChild(node) { this.children.push(node); return node; }
  set textContent(text) { this.children = [text]; }
}
globalThis.document = {
  createElement: (name) => new Node(name), createDocumentFragment: () => new Node(""), createTextNode: (text) => text,
};
const html = (node) => typeof node === "string" ? node
  : node.name ? `<${node.name}>${node.children.map(html).join("")}</${node.name}>` : node.children.map(html).join("");
const source = require("fs").readFileSync(process.argv[1], "utf8").replace('"use strict";', "");
const { markdown, settledEnd } = new Function(source + "; return { markdown, settledEnd };")();
const texts = JSON.parse(require("fs").readFileSync(0, "utf8"));
"""


def run(code: str, texts: object) -> object:
    assert NODE is not None
    done = subprocess.run(
        [NODE, "-e", PROGRAM + code, str(PLAIN / "markdown.js")],
        input=json.dumps(texts), capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


CASES = {
    "It is **forty-two**, as `6 * 7` shows.": "<p>It is <strong>forty-two</strong>, as <code>6 * 7</code> shows.</p>",
    "*one* and * no * and **no **": "<p><em>one</em> and * no * and **no **</p>",
    "**a *b* `c**` d**": "<p><strong>a <em>b</em> `c</strong>` d**</p>",
    "``a ` b`` ` c": "<p><code>a ` b</code> ` c</p>",
    "a `b": "<p>a `b</p>",
    "[x](https://e) [y] [z](ftp://e) [[w](http://e)": "<p><a>x</a> [y] [z](ftp://e) <a>[w</a></p>",
    "[no\nlink](https://e) *no\nmark*": "<p>[no\nlink](https://e) *no\nmark*</p>",
    "**yes\nbold**": "<p><strong>yes\nbold</strong></p>",
    "***": "<p>***</p>",
    "[](https://e)": "<p>[](https://e)</p>",
    "# A\n\n- *b*\n- c\n\n> d\n\n```\n**e**\n```\n": "<h2>A</h2><ul><li><em>b</em></li><li>c</li></ul>"
    "<blockquote>d</blockquote><pre><code>**e**</code></pre>",
}


def test_what_is_made_of_a_text() -> None:
    made = run("console.log(JSON.stringify(texts.map((text) => html(markdown(text)))))", [*CASES])
    assert made == [*CASES.values()]


def test_settled_blocks_and_the_rest_are_the_whole() -> None:
    text = "\n\n".join([*CASES, "```\na\n\nb\n```", "1. x\n2. y", "last\nlines"]) + "\n\n```\nopen\n\nfence"
    code = """
    const [text] = texts;
    const bad = [];
    let settled = 0, done = "";
    for (let length = 0; length <= text.length; length += 3) {
      const now = text.slice(0, length), end = settledEnd(now, settled);
      done += html(markdown(now.slice(settled, end)));
      settled = end;
      if (done + html(markdown(now.slice(end))) !== html(markdown(now))) bad.push(length);
    }
    console.log(JSON.stringify([bad, settled > 100]));
    """
    assert run(code, [text]) == [[], True]


def test_long_runs_of_marks() -> None:
    """With a million characters, work that grows with the square would take hours."""
    million = 1_000_000
    rising, at = [], 1
    while sum(map(len, rising)) < million:
        rising.append("`" * at + " ")
        at += 1
    runs = (
        "`a", "*", "*a ", "**a ", "[", "[a](", "[a]", "[](", "**a *b [", "a*", "`` ` ", "- ", "> ", "```\n", "1", " ",
        "]", "[a](b",
    )  # fmt: skip
    texts = [run_ * (million // len(run_)) for run_ in runs]
    texts += ["".join(rising), "[" * (million // 2) + "](" + "a" * (million // 2), "*" * million + "a" + "*" * million]
    code = "for (const text of texts) { markdown(text); settledEnd(text, 0); } console.log(texts.length)"
    assert run(code, texts) == len(texts)
