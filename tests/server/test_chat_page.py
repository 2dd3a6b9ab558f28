"""The chat page: its files and headers, and, in a browser, a conversation from question to answer."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dsv4.encoding import Tokenizer
from dsv4.server import Keys, Settings, create_app
from dsv4.server.mcp import AllowedMcp
from dsv4.server.static import APP_PATHS, PLAIN, PLAIN_FILES, SANDBOX, TYPES, page_files
from dsv4.testing.stub import StubGenerator
from tests.server.browser import Browser, find_chromium
from tests.server.conftest import Converse, Server, listening

ATTACK = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script> [x](javascript:window.hacked=1)'
THOUGHT = "Six times seven, surely. <b>bold?</b>"
ANSWER = f"""# Answer

It is **forty-two**, as `6 * 7` shows:

```python
print(6 * 7)  # <b>42</b>
```

1. one
2. two

{ATTACK}
"""


@pytest.mark.parametrize("path", PLAIN_FILES)
def test_files_need_no_key_and_may_load_nothing(serve: Converse, path: str) -> None:
    server = serve("x", settings={"keys": Keys.parse(["ann secret-of-ann"])})
    response = server.request("GET", path)
    file = PLAIN / PLAIN_FILES[path]
    assert response.status_code == 200
    assert response.content == file.read_bytes()
    assert response.headers["content-type"] == TYPES[file.suffix]
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert server.request("GET", "/v1/models").status_code == 401


def test_without_bundled_pages_the_plain_one_is_at_the_root(tmp_path: Path) -> None:
    files = page_files(tmp_path)
    assert files["/"] == PLAIN / "index.html"
    assert set(files) == {"/", SANDBOX, *PLAIN_FILES}


def test_the_sandbox_has_an_origin_of_its_own_and_no_network(serve: Converse) -> None:
    policy = serve("x").request("GET", SANDBOX).headers["content-security-policy"].split("; ")
    assert "default-src 'none'" in policy
    assert "sandbox allow-scripts" in policy
    assert not [part for part in policy if part.startswith(("connect-src", "img-src", "frame-src"))]
    assert "'self'" not in next(part for part in policy if part.startswith("script-src"))


def test_pages_may_connect_to_allowed_origins_only(serve: Converse) -> None:
    def connections(**settings: Any) -> str:
        policy = serve("x", settings=settings).request("GET", "/plain").headers["content-security-policy"]
        return next(part for part in policy.split("; ") if part.startswith("connect-src"))

    assert connections() == "connect-src 'self'"
    allowed = AllowedMcp.parse({"mcpServers": {"docs": {"url": "http://127.0.0.1:3001/mcp"}}})
    assert connections(mcp=allowed) == "connect-src 'self' http://127.0.0.1:3001"


def test_bundled_pages(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<script type=module src=app/main-AB.js></script>")
    (tmp_path / "main-AB.js").write_text("let a = 1;" * 100)
    (tmp_path / "sources.sha256").write_text("0")
    settings = Settings(keys=Keys.parse(["ann secret-of-ann"]))
    app = create_app(StubGenerator([]), tokenizer, model_name="tiny", settings=settings, pages=tmp_path)
    server = Server(tokenizer, StubGenerator([]))
    server.app = app
    for path in (*APP_PATHS, "/plain", "/app/main-AB.js"):
        assert server.request("GET", path).status_code == 200
    for path in APP_PATHS:
        page = server.request("GET", path)
        assert "main-AB.js" in page.text
        assert page.headers["cache-control"] == "no-cache"
    script = server.request("GET", "/app/main-AB.js")
    assert script.text == "let a = 1;" * 100
    assert script.headers["content-encoding"] == "gzip"
    assert "immutable" in script.headers["cache-control"]
    bare = server.request("GET", "/app/main-AB.js", headers={"accept-encoding": "identity"})
    assert bare.text == script.text
    assert "content-encoding" not in bare.headers
    assert server.request("GET", "/app/sources.sha256").status_code == 401


def test_files_hold_together() -> None:
    page = (PLAIN / "index.html").read_text()
    named = {f"/{name}" for name in re.findall(r'(?:src|href)="([^":]+)"', page)}
    assert named == set(PLAIN_FILES) - {"/plain"}
    ids = set(re.findall(r'id="([^"]+)"', page))
    assert set(re.findall(r'\bat\("([^"]+)"\)', (PLAIN / "chat.js").read_text())) <= ids
    for file in PLAIN.iterdir():
        text = file.read_text()
        assert not re.search(r"(src|href|url\(|@import|fetch\()[^\n]*(https?:)?//", text), file
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser"):
            assert way not in text, (file, way)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("chromium is not installed")
    with Browser(program) as browser:
        yield browser


def say(browser: Browser, text: str) -> None:
    browser.run(f'document.getElementById("text").value = {text!r}; document.getElementById("form").requestSubmit()')


@pytest.mark.slow
def test_conversation_in_a_browser(serve: Converse, browser: Browser, tmp_path: Path) -> None:
    server = serve(f"{THOUGHT}</think>{ANSWER}", delay=0.002)
    with listening(server) as url:
        browser.open(f"{url}/plain")
        browser.wait('document.getElementById("model").options.length > 2')
        say(browser, "What is 6 * 7?")
        browser.wait('document.querySelector(".note")?.textContent.includes("tokens")')
        assert browser.run('document.querySelector("article.user").textContent') == "What is 6 * 7?"
        assert browser.run('document.querySelector("details div").textContent') == THOUGHT
        assert not browser.run('document.querySelector("details").open')
        assert browser.run('document.querySelector(".body h2").textContent') == "Answer"
        assert browser.run('document.querySelector(".body strong").textContent') == "forty-two"
        assert browser.run('document.querySelector(".body pre").textContent') == "print(6 * 7)  # <b>42</b>"
        assert browser.run('document.querySelectorAll(".body ol li").length') == 2
        # what the model wrote is text: no element of it, no script run, no link but to the web
        assert (
            browser.run('document.querySelectorAll(".body img, .body script, .body b, details b, .body a").length') == 0
        )
        assert browser.run("window.hacked") is None
        assert ATTACK in browser.run('document.querySelector(".body").textContent')
        browser.picture(tmp_path / "chat.png")
        assert (tmp_path / "chat.png").read_bytes().startswith(b"\x89PNG")
        say(browser, "And in short?")
        browser.wait('document.querySelectorAll(".note")[1]?.textContent.includes("tokens")')
    second = server.tokenizer.decode(server.generator.calls[1].prompt)
    assert "forty-two" in second
    assert second.endswith("And in short?<｜Assistant｜><think>")


@pytest.mark.slow
def test_stop_and_mode_in_a_browser(serve: Converse, browser: Browser) -> None:
    server = serve([300] * 4000, delay=0.01)
    with listening(server) as url:
        browser.open(f"{url}/plain")
        browser.wait('document.getElementById("model").options.length > 2')
        browser.run('document.getElementById("mode").value = "none"')
        say(browser, "Go on for ever")
        browser.wait('document.querySelector(".body")?.textContent.length > 5')
        browser.run('document.getElementById("stop").click()')
        browser.wait('document.querySelector(".note").textContent.startsWith("stopped")')
        browser.wait("true")
    assert server.generator.calls[0].closed_early
    assert server.tokenizer.decode(server.generator.calls[0].prompt).endswith("</think>")


def with_examples(server: Server) -> Server:
    backend = server.app.state.backend
    backend.defaults = replace(backend.defaults, example_prompts=("Who are you?", "Sort 3 1 2"))
    return server


def test_examples_of_a_model_are_listed(serve: Converse) -> None:
    assert "example_prompts" not in serve("x").request("GET", "/v1/models").json()["data"][0]
    entry = with_examples(serve("x")).request("GET", "/v1/models").json()["data"][0]
    assert entry["example_prompts"] == ["Who are you?", "Sort 3 1 2"]


@pytest.mark.slow
def test_examples_are_offered_in_a_browser(serve: Converse, browser: Browser) -> None:
    server = with_examples(serve("why</think>Yes."))
    with listening(server) as url:
        browser.open(f"{url}/plain")
        browser.wait('document.querySelectorAll("#examples button").length == 2')
        browser.run('document.querySelector("#examples button").click()')
        browser.wait('document.querySelector(".note")?.textContent.includes("tokens")')
        assert browser.run('document.querySelector("article.user").textContent') == "Who are you?"
        assert browser.run('document.getElementById("examples").hidden')
        browser.run('document.getElementById("new").click()')
        assert not browser.run('document.getElementById("examples").hidden')
        assert browser.run('document.querySelectorAll("#examples button").length') == 2


@pytest.mark.slow
def test_a_key_is_asked_for(serve: Converse, browser: Browser) -> None:
    server = serve("why</think>Yes.", settings={"keys": Keys.parse(["ann secret-of-ann"])})
    with listening(server) as url:
        browser.open(f"{url}/plain")
        browser.wait('!document.getElementById("key-label").hidden')
        browser.run(
            'document.getElementById("key").value = "secret-of-ann"; '
            'document.getElementById("key").dispatchEvent(new Event("change"))'
        )
        browser.wait('document.getElementById("model").options.length > 2')
        say(browser, "Well?")
        browser.wait('document.querySelector(".body")?.textContent === "Yes."')
