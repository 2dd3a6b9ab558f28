"""The chat page in Chromium: files, Markdown that a model writes, and a long conversation that scrolls.

Times of frames are recorded and printed (`-rP`). Their bound is generous, because other processes share the machine.
"""

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dsv4.encoding import Tokenizer
from dsv4.generation import PromptProgress, SamplingParams
from dsv4.server import create_app
from dsv4.testing.stub import StubGenerator
from tests.conftest import ROOT
from tests.server.conftest import Server, listening
from tests.web.browsers import BROWSER_MARKS

pytestmark = BROWSER_MARKS
PATIENCE = 120_000  # milliseconds
CONTEXT = 100_000
CHAPTER = (ROOT / "tests" / "web" / "chapter.md").read_text(encoding="utf-8")
ATTACKS = (
    '<img src=x onerror="window.hacked=1">',
    "<script>window.hacked=1</script>",
    "[a](javascript:window.hacked=1) [b](data:text/html,<script>window.hacked=1</script>)",
    "![c](javascript:window.hacked=1) <javascript:window.hacked=1> [d]: javascript:window.hacked=1",
    '```"><img src=x onerror="window.hacked=1">\n<b>code</b>\n```',
    "$\\href{javascript:window.hacked=1}{x} \\htmlStyle{color:red}{y}$ $\\includegraphics{http://127.0.0.1:9/z.png}$",
    '| <svg onload="window.hacked=1"> | b |\n|---|---|\n| <iframe src="javascript:window.hacked=1"> | c |',
)
PROGRESS = tuple(PromptProgress(done, 40_000, 10_000, 2.0) for done in (10_000, 20_000, 30_000))


class Site(Server):
    """The pages over a model that answers with `answer`, and remembers its prompts."""

    def __init__(self) -> None:
        self.tokenizer = Tokenizer.load(ROOT / "models" / "nano")
        self.answer = "ok"
        self.generator = StubGenerator(self._script, CONTEXT, progress=PROGRESS)
        self.app = create_app(self.generator, self.tokenizer, model_name="nano")

    def _script(self, prompt: Sequence[int], params: SamplingParams) -> list[int]:
        return [*self.tokenizer.encode_text(f"</think>{self.answer}", trusted=True), self.tokenizer.eos_id]

    @property
    def prompt(self) -> str:
        """The last one."""
        return self.tokenizer.decode(self.generator.calls[-1].prompt)


@pytest.fixture(scope="module")
def site() -> Site:
    return Site()


@pytest.fixture(scope="module")
def address(site: Site) -> Iterator[str]:
    with listening(site) as url:
        yield url


@pytest.fixture
def page(address: str, chromium: Any) -> Iterator[Any]:
    """A page that keeps nothing yet. Errors of scripts fail the test, and so does a request to another site."""
    context = chromium.new_context(viewport={"width": 1100, "height": 820})
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith((address, "data:")) else faults.append(request.url)
    )
    page.goto(address)
    page.get_by_label("Question", exact=True).wait_for()
    yield page
    context.close()
    assert not faults


def ask(page: Any, text: str) -> None:
    page.get_by_label("Question", exact=True).fill(text)
    page.keyboard.press("Enter")
    page.locator(".answer").last.locator(".figures").wait_for()


def attach(page: Any, *files: dict[str, Any]) -> None:
    page.locator("input[type=file][multiple]").set_input_files(list(files))


def file(name: str, content: bytes) -> dict[str, Any]:
    return {"name": name, "mimeType": "application/octet-stream", "buffer": content}


def frames(page: Any) -> list[float]:
    """The lengths of the frames since `watch`, in milliseconds."""
    return page.evaluate("() => window.frames.slice(1)")


def watch(page: Any) -> None:
    page.evaluate("""() => {
        window.frames = [];
        let last = performance.now();
        const step = (now) => { window.frames.push(now - last); last = now; requestAnimationFrame(step); };
        requestAnimationFrame(step);
    }""")


def report(name: str, lengths: list[float]) -> None:
    worst = sorted(lengths)[-3:]
    print(f"{name}: {len(lengths)} frames, median {statistics.median(lengths):.0f} ms, worst {worst}")


def test_a_large_file_is_counted_sent_and_folded(page: Any, site: Site) -> None:
    text = "".join(f"Line {number} of a long file.\n" for number in range(8000))
    assert len(text) > 200_000
    watch(page)
    attach(page, file("long.txt", text.encode()))
    chip = page.locator(".file-chip", has_text="long.txt")
    chip.get_by_text("tokens", exact=False).wait_for()
    page.locator(".file-chip .file-fact", has_text="kB, ").wait_for()
    report("attaching 200 kB", frames(page))
    counted = int("".join(filter(str.isdigit, chip.locator(".file-fact").inner_text().split(",", 1)[1])))
    exact = len(site.tokenizer.encode_text(text))
    assert abs(counted - exact) <= 4  # counted in pieces
    ask(page, "What is in it?")
    assert text in site.prompt
    assert "What is in it?" in site.prompt
    sent = page.locator("details.sent-file")
    assert sent.locator("pre").count() == 0  # folded: not even drawn
    sent.locator("summary").click()
    sent.locator("pre").wait_for()
    # inner_text would have only what is near the window
    assert sent.locator("pre").text_content() == text
    page.reload()
    page.locator("details.sent-file summary", has_text="long.txt").wait_for()


def test_what_does_not_fit_is_said_before_it_is_sent(page: Any) -> None:
    attach(page, file("huge.md", ("Many words go here, one after another.\n" * 60_000).encode()))
    page.locator(".file-chip .file-fact", has_text="MB, ").wait_for()
    page.locator(".room.full", has_text="too many").wait_for()
    page.get_by_label("Question", exact=True).fill("Sum it up")
    assert page.get_by_role("button", name="Send").is_disabled()
    page.get_by_role("button", name="Remove huge.md").click()
    page.locator(".room.full").wait_for(state="detached")
    page.get_by_role("button", name="Send", disabled=False).wait_for()  # the count of what is left takes a moment
    assert page.get_by_role("button", name="Send").is_enabled()


def test_wrong_kinds_are_refused_with_a_sentence(page: Any, site: Site) -> None:
    attach(
        page,
        file("cat.png", b"\x89PNG\r\n\x1a\n"),
        file("empty.txt", b""),
        file("tool", b"a\0b"),
        file("a.pdf", b"%PDF-"),
    )
    for sentence in ("This is a picture", "The file is empty.", "This is not a text file.", "The PDF is damaged."):
        page.locator(".file-chip.failed", has_text=sentence).wait_for()
    ask(page, "Nothing?")
    assert "cat.png" not in site.prompt


def test_a_pdf_is_read_in_the_page(page: Any, site: Site) -> None:
    attach(page, file("report.pdf", pdf("Forty-two pages of results")))
    page.locator(".file-chip .file-fact", has_text="tokens").wait_for()
    ask(page, "Sum it up")
    assert "[page 1]\nForty-two pages of results" in site.prompt


def pdf(text: str) -> bytes:
    """A PDF of one page. Readers repair the table of objects that it lacks."""
    stream = f"BT /F 12 Tf 50 700 Td ({text}) Tj ET"
    return (
        "%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
        "3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents 4 0 R/Resources<</Font<</F 5 0 R>>>>>>endobj\n"
        f"4 0 obj<</Length {len(stream)}>>stream\n{stream}\nendstream endobj\n"
        "5 0 obj<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF"
    ).encode()


def test_dropped_files_and_long_pasted_text(page: Any) -> None:
    page.evaluate("""() => {
        const data = new DataTransfer();
        data.items.add(new File(["dropped"], "dropped.txt"));
        const target = document.querySelector(".composer");
        for (const kind of ["dragenter", "dragover", "drop"])
            target.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
        const pasted = new DataTransfer();
        pasted.setData("text/plain", "a long text ".repeat(1000));
        document.querySelector("#question").dispatchEvent(
            new ClipboardEvent("paste", { clipboardData: pasted, bubbles: true, cancelable: true }));
    }""")
    for name in ("dropped.txt", "Pasted text.txt"):
        page.locator(".file-chip", has_text=name).get_by_text("tokens").wait_for()


@pytest.mark.parametrize("name", ["<img src=x onerror=window.hacked=1>.txt", "invoice\u202etxt.exe", "../../../x.txt"])
def test_hostile_file_names(page: Any, site: Site, name: str) -> None:
    attach(page, file(name, b"content"))
    page.locator(".file-chip", has_text="tokens").wait_for()
    ask(page, "Read it")
    shown = page.locator(".sent-file .file-name").inner_text()
    assert "\u202e" not in shown + site.prompt
    assert "/" not in shown
    assert page.evaluate("() => window.hacked === undefined && document.querySelector('img') === null")


def test_attacks_in_an_answer_are_text(page: Any, site: Site) -> None:
    site.answer = "\n\n".join((*ATTACKS, "The end."))
    ask(page, "attack")
    page.locator(".answer").get_by_text("The end.").wait_for()
    page.wait_for_timeout(1000)
    found = page.evaluate("""() => {
        const bad = [...document.querySelectorAll(".answer *")].filter((element) =>
            ["IMG", "SCRIPT", "IFRAME", "OBJECT", "EMBED"].includes(element.tagName)
            || [...element.attributes].some(({ name, value }) =>
                /^on/.test(name) || /^(javascript|data):/i.test(value)));
        return { bad: bad.map((element) => element.outerHTML), hacked: window.hacked };
    }""")
    assert found == {"bad": [], "hacked": None}


def test_tables_maths_lists_and_code_while_they_are_written(page: Any, site: Site) -> None:
    site.answer = CHAPTER
    ask(page, "chapter")
    answer = page.locator(".answer .markdown")
    assert answer.locator("table tbody tr").count() == 3
    assert answer.locator("td.to-right").count() == 6
    assert answer.locator("ol > li > ul > li > ul > li").count() == 1
    code = answer.locator("ol > li figure.code pre").first
    assert code.text_content() == "def softmax(x):\n    z = x - max(x)\n    return [exp(v) for v in z]\n"
    answer.locator(".maths.display").first.scroll_into_view_if_needed()
    answer.locator(".katex-display math").first.wait_for(state="attached")
    answer.locator(".hljs-keyword").first.wait_for()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    answer.get_by_role("button", name="Copy the code").first.click()
    answer.get_by_text("Copied").wait_for()
    assert page.evaluate("() => navigator.clipboard.readText()") == code.text_content()


def test_a_long_conversation_scrolls(page: Any, site: Site, tmp_path: Path) -> None:
    site.answer = "ok"
    rounds = 110
    body = CHAPTER * 2
    messages: list[dict[str, Any]] = []
    for number in range(rounds):
        for role, content in (("user", f"Question {number}"), ("assistant", body)):
            parent = messages[-1]["id"] if messages else None
            entry = {"id": f"{role}{number}", "parent": parent, "role": role, "content": content, "state": "done"}
            messages.append({**entry, "conversation": "c", "created": number})
    tokens = rounds * len(site.tokenizer.encode_text(body))
    assert tokens > 50_000
    kept = {"conversation": {"title": "Long", "head": messages[-1]["id"]}, "messages": messages}
    exported = tmp_path / "long.json"
    exported.write_text(json.dumps({"format": "dsv4-conversations", "version": 1, "conversations": [kept]}))
    page.locator("input[type=file]:not([multiple])").set_input_files(exported)
    page.get_by_role("link", name="Long").click()
    page.locator(".answer").nth(rounds - 1).wait_for(state="attached")
    page.wait_for_timeout(2000)
    for name, step in (("up", -1), ("down", 1)):
        watch(page)
        page.evaluate(
            """(step) => new Promise((done) => {
                const talk = document.querySelector(".talk");
                let count = 0;
                const scroll = () => {
                    talk.scrollTop += step * 300;
                    if (++count < 250) requestAnimationFrame(scroll); else done();
                };
                requestAnimationFrame(scroll);
            })""",
            step,
        )
        lengths = frames(page)
        report(f"{tokens} tokens, scrolling {name}", lengths)
        assert statistics.median(lengths) < 500


def test_first_paint(page: Any) -> None:
    page.reload()
    page.get_by_label("Question", exact=True).wait_for()
    paint = page.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0].startTime")
    print(f"first paint after {paint:.0f} ms")
    assert paint < 20_000


def test_a_long_prompt_shows_how_far_it_is(page: Any, site: Site) -> None:
    body = page.evaluate("""async () => {
        const body = { messages: [{ role: "user", content: "x" }], stream: true, return_progress: true };
        const init = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
        return (await fetch("v1/chat/completions", init)).text();
    }""")
    assert '"prompt_progress":{"total":40000,"cache":10000,"processed":20000' in body
