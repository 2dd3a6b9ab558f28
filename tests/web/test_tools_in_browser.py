"""Tools of the chat in Chromium: approval, built-in tools, MCP servers, and what must not get out of any of them."""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dsv4.encoding import Tokenizer
from dsv4.server.mcp import AllowedMcp
from tests.conftest import ROOT
from tests.web.browsers import AXE, BROWSER_MARKS, serious
from tests.web.tool_site import QUESTION, steps, tool_site

pytestmark = BROWSER_MARKS
PROGRAM = ROOT / "tests" / "server" / "mcp_program.py"
EVERYTHING = "@modelcontextprotocol/server-everything@2026.8.31"
PATIENCE = 120_000  # milliseconds: a busy machine is no fault


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(ROOT / "models" / "nano")


@pytest.fixture(scope="module")
def everything() -> Path:
    """A real MCP server: its folder in node_modules."""
    folder = Path(tempfile.gettempdir()) / "dsv4-mcp-everything"
    place = folder / "node_modules" / "@modelcontextprotocol" / "server-everything" / "dist"
    if not place.is_dir():
        folder.mkdir(exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), EVERYTHING]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=300)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"{EVERYTHING} cannot be installed here: {error}")
    return place


class Chat:
    """The chat page, as its user sees it."""

    def __init__(self, page: Any, model: Any) -> None:
        self.page, self.model = page, model

    def choose(self, *tools: str, connect: str = "") -> None:
        """Turn tools on, by their titles."""
        self.page.get_by_role("button", name="Tools").click()
        dialog = self.page.get_by_role("dialog", name="Tools")
        if connect:
            dialog.get_by_role("region", name=connect).get_by_role("button", name="Connect").click()
        for tool in tools:
            dialog.get_by_role("checkbox", name=tool).first.check()
        dialog.get_by_role("button", name="Close").click()
        dialog.wait_for(state="hidden")  # until then the page behind it takes no text

    def ask(self, text: str) -> None:
        box = self.page.get_by_label("Question", exact=True)
        box.fill(text)
        for _ in range(50):  # a dialog that was closed a moment ago may still keep the page from taking text
            if box.input_value() == text:
                break
            self.page.wait_for_timeout(100)
            box.fill(text)
        self.page.get_by_role("button", name="Send").click()

    def card(self, title: str, index: int = 0) -> Any:
        return self.page.get_by_role("region", name=f"Call of {title}").nth(index)

    def allow(self, title: str, button: str = "Allow once", index: int = 0) -> None:
        self.card(title, index).get_by_role("button", name=button).click()

    def answered(self, text: str) -> None:
        self.page.get_by_text(text).first.wait_for()
        self.page.get_by_role("button", name="Send").wait_for()

    def results(self) -> list[str]:
        """The results that the model got in its last prompt."""
        prompt = self.model.calls[-1].prompt
        return Tokenizer.load(ROOT / "models" / "nano").decode(prompt).split("STEPS ")[-1].split("\n")


@pytest.fixture
def chat(chromium: Any, tokenizer: Tokenizer) -> Iterator[Any]:
    """`chat(allowed)`: the chat page of a new server; every fault of a script ends the test."""
    faults: list[str] = []
    with ExitStack() as stack:

        def open_page(allowed: dict[str, Any] | None = None) -> Chat:
            site = tool_site(tokenizer, AllowedMcp.parse({"mcpServers": {}, **(allowed or {})}))
            url, model = stack.enter_context(site)
            page = stack.enter_context(chromium.new_context(viewport={"width": 1100, "height": 900})).new_page()
            page.set_default_timeout(PATIENCE)
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.goto(url)
            return Chat(page, model)

        yield open_page
    assert not faults


def scripted(tmp_path: Path) -> dict[str, Any]:
    program = {"command": sys.executable, "args": [str(PROGRAM), str(tmp_path / "pids")], "timeout": 100}
    return {"mcpServers": {"scripted": program}}


def test_calls_run_after_approval_and_are_kept(chat: Any) -> None:
    talk = chat()
    talk.choose("Calculator", "JavaScript")
    sort = "const list = [3, 1, 2].sort();\nlist.join(' ')"
    talk.ask(steps([("calculator", {"expression": "(17 + 25) * 10"})], [("javascript", {"code": sort})]))
    # the calculator changes nothing, so nobody is asked
    talk.card("Calculator").get_by_text("Result: 420").wait_for()
    question = talk.card("JavaScript").get_by_role("group", name="May the model use JavaScript?")
    question.wait_for()
    assert sort in talk.card("JavaScript").locator("pre").first.text_content()
    assert len(talk.model.calls) == 2
    talk.allow("JavaScript")
    talk.answered("I used 2 rounds of tools.")
    assert talk.card("JavaScript").get_by_text("Result: 1 2 3").is_visible()
    assert any("420" in line for line in talk.results())
    talk.page.reload()
    talk.card("JavaScript").get_by_text("Result: 1 2 3").wait_for()
    assert talk.page.get_by_role("button", name="Tools: 2 on").is_visible()


def test_denied_always_and_stopped(chat: Any) -> None:
    talk = chat()
    talk.choose("JavaScript")
    one = ("javascript", {"code": "1 + 1"})
    talk.ask(steps([one], [one], [one]))
    talk.allow("JavaScript", "Deny")
    talk.card("JavaScript").get_by_text("the user did not allow this call").wait_for()
    talk.allow("JavaScript", "Always in this chat", index=1)
    talk.answered("I used 3 rounds of tools.")
    assert talk.card("JavaScript", 2).get_by_text("Result: 2").is_visible()
    # another chat asks again
    talk.page.get_by_role("button", name="New chat").click()
    talk.ask(steps([one]))
    talk.card("JavaScript").get_by_role("button", name="Allow once").wait_for()
    talk.page.get_by_role("button", name="Stop").click()
    talk.card("JavaScript").get_by_text("stopped by the user").wait_for()
    # the conversation goes on: the model has got a result for the call
    talk.ask("And now?")
    talk.answered("I used 1 rounds of tools.")


def test_the_loop_ends_at_its_limit(chat: Any) -> None:
    talk = chat()
    talk.choose("Calculator")
    talk.ask(steps(*([("calculator", {"expression": f"{n}"})] for n in range(30))))
    talk.page.get_by_text("the limit of 12 steps is reached").wait_for()
    talk.page.get_by_role("button", name="Send").wait_for()
    assert len(talk.model.calls) == 12


class Ears(BaseHTTPRequestHandler):
    """Counts requests."""

    heard: list[str]

    def do_GET(self) -> None:
        self.heard.append(self.path)
        self.send_response(200)
        self.send_header("access-control-allow-origin", "*")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        pass


def test_the_sandbox_keeps_code_in(chat: Any) -> None:
    heard: list[str] = []
    ears = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Ears,), {"heard": heard}))
    threading.Thread(target=ears.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{ears.server_port}"
    codes = [
        f"return (await fetch('{address}/fetch')).status",
        f"importScripts('{address}/import')",
        f"const x = new XMLHttpRequest(); x.open('GET', '{address}/xhr', false); x.send(); 'sent'",
        f"return await new Promise((yes, no) => {{ const s = new WebSocket('{address.replace('http', 'ws')}/ws');"
        " s.onopen = yes; s.onerror = () => no(new Error('refused')); })",
        "typeof document + typeof localStorage",
        "return await new Promise((yes, no) => { const r = indexedDB.open('x'); r.onsuccess = () => yes('opened');"
        " r.onerror = () => no(new Error('refused')); })",
        "for (;;) {}",
        "console.log('x'.repeat(1e6))",
        "throw new Error('mine')",
        "JSON.parse('{')",
        "postMessage({ lines: ['<img src=x onerror=alert(1)>'], failed: false }); await 1; return 2",
    ]
    talk = chat()
    talk.choose("JavaScript")
    talk.page.get_by_role("button", name="Tools: 1 on").wait_for()
    for code in codes:
        talk.ask(steps([("javascript", {"code": code})]))
        if code == codes[0]:
            talk.allow("JavaScript", "Always in this chat")
        talk.page.get_by_text("I used 1 rounds of tools.").nth(codes.index(code)).wait_for()
        talk.page.get_by_role("button", name="Send").wait_for()
    cards = talk.page.get_by_role("region", name="Call of JavaScript")
    results = [cards.nth(index).locator("pre").last.text_content() for index in range(len(codes))]
    ears.shutdown()
    ears.server_close()
    assert heard == []
    assert all("Error" in result for result in results[:4]), results[:4]
    assert results[4] == "undefinedundefined"
    assert "Error" in results[5]
    assert results[6] == "no result within 5 seconds"
    assert len(results[7]) < 11_500
    assert results[8] == "Error: mine"
    assert results[9].startswith("SyntaxError")
    assert "<img" in results[10]
    assert talk.page.evaluate("window.hacked") is None
    assert talk.page.locator("iframe").count() == 0


def test_a_bridged_program_and_attacks_in_its_words(chat: Any, tmp_path: Path) -> None:
    talk = chat(scripted(tmp_path))
    talk.choose("echo", "<img", "die", connect="scripted")
    values = {"<img src=x onerror=window.hacked=1>": "<script>window.hacked=1</script>"}
    talk.ask(
        steps([("scripted_echo", values)], [("scripted_attack", {})], [("scripted_die", {})], [("scripted_echo", {})])
    )
    talk.allow("echo")
    attack = talk.page.get_by_role("region", name="Call of <img")
    attack.get_by_role("button", name="Allow once").click()
    talk.allow("die")
    talk.card("die").get_by_text("the disk is full").wait_for()
    # a new session, because the first one ended with its program
    talk.allow("echo", index=1)
    talk.answered("I used 4 rounds of tools.")
    assert "<script>window.hacked=1</script>" in talk.card("echo").locator("pre").last.text_content()
    assert "<img src=x" in attack.locator("pre").last.text_content()
    assert "\u202e" not in attack.text_content()
    assert talk.page.evaluate("window.hacked") is None
    assert talk.page.locator(".call img, .call script, .call b").count() == 0


def test_a_real_server_through_the_bridge(chat: Any, everything: Path) -> None:
    program = {"command": "node", "args": [str(everything / "index.js"), "stdio"]}
    talk = chat({"mcpServers": {"everything": program}})
    talk.choose("Echo", connect="everything")
    talk.ask(steps([("everything_echo", {"message": "through the bridge"})]))
    talk.allow("Echo")
    talk.answered("I used 1 rounds of tools.")
    assert talk.card("Echo").get_by_text("Result: Echo: through the bridge").is_visible()
    assert any("Echo: through the bridge" in line for line in talk.results())


def test_a_real_server_that_the_user_adds(chat: Any, everything: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Ears) as free:
        port = free.server_port
    command = ["node", str(everything / "index.js"), "streamableHttp"]
    process = subprocess.Popen(command, env={"PORT": str(port), "PATH": "/usr/bin:/bin"}, stderr=subprocess.DEVNULL)
    try:
        talk = chat({"allowedOrigins": [f"http://127.0.0.1:{port}"]})
        talk.page.get_by_role("button", name="Tools").click()
        address = talk.page.get_by_label("Add an MCP server")
        address.fill("http://127.0.0.1:1/mcp")
        talk.page.get_by_role("button", name="Add", exact=True).click()
        talk.page.get_by_text("does not allow http://127.0.0.1:1").wait_for()
        address.fill(f"http://127.0.0.1:{port}/mcp")
        talk.page.get_by_role("button", name="Add", exact=True).click()
        talk.page.get_by_role("button", name="Close").click()
        talk.choose("Echo")
        name = f"127-0-0-1-{port}_echo"
        talk.ask(steps([(name, {"message": "direct"})]))
        talk.allow("Echo")
        talk.answered("I used 1 rounds of tools.")
        assert talk.card("Echo").get_by_text("Result: Echo: direct").is_visible()
    finally:
        process.terminate()
        process.wait()


def test_a_picture(chat: Any, tmp_path: Path) -> None:
    talk = chat()
    talk.choose("Calculator", "JavaScript")
    talk.ask(QUESTION)
    talk.card("Calculator").get_by_text("Result: 397.8").wait_for()
    talk.card("JavaScript").get_by_role("button", name="Allow once").wait_for()
    file = Path(os.environ.get("DSV4_PICTURES", tmp_path)) / "web-tools.png"
    talk.page.screenshot(path=file)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_nothing_serious_for_screen_readers(chat: Any, tmp_path: Path) -> None:
    if not AXE.is_file():
        pytest.skip("axe-core is not installed (npm ci in web/)")
    talk = chat(scripted(tmp_path))
    talk.choose("Calculator", "JavaScript", "echo", connect="scripted")
    talk.ask(steps([("calculator", {"expression": "1/0"}), ("javascript", {"code": "1"})]))
    talk.card("JavaScript").get_by_role("button", name="Allow once").wait_for()
    assert serious(talk.page) == []
    talk.page.get_by_role("button", name="Tools: 3 on").click()
    assert serious(talk.page) == []
