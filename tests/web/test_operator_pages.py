"""The pages of engine, usage, training and model in Chromium: what they show and do, in light, dark and on a phone."""

import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dsv4.encoding import Tokenizer, train_bpe
from tests.server.conftest import CORPUS
from tests.web.browsers import AXE, BROWSER_MARKS, PHONE, WIDE, serious, settled
from tests.web.operator_demo import operator_server, served

pytestmark = BROWSER_MARKS
PAGES = ("engine", "usage", "training", "model")
PATIENCE = 600_000  # milliseconds: a busy machine is no fault
# an element of each page that is there when its data is
READY = {
    "engine": ".requests tbody tr",
    "usage": ".data-table tbody tr",
    "training": ".curve-card svg",
    "model": ".layers",
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_bpe([CORPUS], 420, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("operator")


@pytest.fixture(scope="module")
def url(tokenizer: Tokenizer, place: Path) -> Iterator[str]:
    """A server with an answer that goes on."""
    server = operator_server(tokenizer, place)
    with served(server) as address:
        stop = threading.Event()
        asking = [threading.Thread(target=ask_on, args=(address, stop)) for _ in range(2)]
        for thread in asking:
            thread.start()
        yield address
        stop.set()
        for thread in asking:
            thread.join(60)


def ask_on(address: str, stop: threading.Event) -> None:
    """Ask one question after another; a cancelled one is over."""
    body = {"model": "deepseek-v4-flash", "stream": True, "messages": [{"role": "user", "content": "Go on. " * 60}]}
    request = urllib.request.Request(f"{address}/v1/chat/completions", json.dumps(body).encode())
    while not stop.is_set():
        with suppress(OSError), urllib.request.urlopen(request, timeout=60) as response:
            for _ in response:
                if stop.is_set():
                    return


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A page that fails its test if a script or the policy complains."""
    context = chromium.new_context(viewport=WIDE)
    context.set_default_timeout(PATIENCE)
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    yield page
    context.close()
    assert not [text for text in wrong if "403" not in text]


def opened(page: Any, url: str, name: str) -> None:
    page.goto(f"{url}/{name}")
    page.wait_for_selector(READY[name])


def is_cut(page: Any) -> bool:
    """Whether the page itself scrolls sideways."""
    return page.evaluate(
        "[document.documentElement, ...document.querySelectorAll('.page-body')]"
        ".some((part) => part.scrollWidth > part.clientWidth + 1)"
    )


@pytest.mark.parametrize("name", PAGES)
def test_pages_hold_in_both_themes_and_on_a_phone(page: Any, url: str, name: str) -> None:
    opened(page, url, name)
    assert not is_cut(page)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        if AXE.is_file():
            assert serious(page) == []
    page.set_viewport_size(PHONE)
    page.reload()
    page.wait_for_selector(READY[name])
    settled(page)
    assert not is_cut(page)
    if AXE.is_file():
        assert serious(page) == []


def test_engine(page: Any, url: str) -> None:
    opened(page, url, "engine")
    # an answer that ends is followed by another one
    page.wait_for_function("() => document.querySelectorAll('.requests tbody tr').length === 2")
    assert "Tokens per second" in page.inner_text("main")
    canvas = page.locator(".heat-map canvas")
    canvas.wait_for()
    canvas.hover(position={"x": 40, "y": 8})
    page.locator(".heat-said", has_text="expert").wait_for()
    first = page.locator(".requests tbody code").first.inner_text()
    page.get_by_role("button", name=f"Cancel request {first}").click()
    page.get_by_text(f"Request {first} was cancelled").wait_for()
    page.wait_for_function(
        "id => ![...document.querySelectorAll('.requests code')].some(c => c.textContent === id)", arg=first
    )
    chart = page.locator("svg[aria-label^='Tokens per second']")
    chart.focus()
    page.keyboard.press("ArrowLeft")
    page.locator(".reading").wait_for()


def test_usage(page: Any, url: str) -> None:
    opened(page, url, "usage")
    text = page.inner_text("main")
    assert all(word in text for word in ("ann", "bob", "ci", "deepseek-v4-flash", "$"))
    page.get_by_role("radio", name="Cost").check()
    page.locator("svg[aria-label='Cost by day and model']").wait_for()
    page.get_by_role("radio", name="7 days").check()
    # a column for each day, and the axes
    page.wait_for_function("() => document.querySelectorAll('.line-chart svg > g').length <= 9")


def test_training_goes_on(page: Any, url: str, place: Path) -> None:
    page.goto(f"{url}/training?runs=base")
    page.wait_for_selector(READY["training"])
    page.get_by_text("599", exact=True).first.wait_for()
    page.locator(".heat-map canvas").wait_for()
    line = {"step": 600, "tokens": 600 * 4096, "phase": "sparse", "next": 0.7, "max_violation": 0.1, "spike": None}
    with (place / "runs" / "base" / "log.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
    page.get_by_text("600", exact=True).first.wait_for()
    page.get_by_role("checkbox", name="chain/grpo").check()
    page.get_by_role("checkbox", name="chain/opd").check()
    page.get_by_role("heading", name="Rewards").wait_for()
    page.locator(".sample").first.wait_for()
    page.locator(".sample summary").first.click()
    assert "What is 17 + 25?" in page.locator(".sample pre").first.inner_text()
    page.reload()
    page.get_by_role("heading", name="Rewards").wait_for()
    assert page.get_by_role("checkbox", name="chain/opd").is_checked()


def test_model(page: Any, url: str) -> None:
    opened(page, url, "model")
    assert page.locator(".layer").count() == 43
    page.locator(".layer").nth(0).click()
    page.get_by_role("heading", name="Layer 0").wait_for()
    page.locator(".layers").focus()
    page.keyboard.press("ArrowRight")
    page.get_by_role("heading", name="Layer 1 ·").wait_for()
    page.get_by_label("Prompt").fill("Why is the sky blue? Say it in a few words, please.")
    page.get_by_role("button", name="Inspect").click()
    page.locator(".token.answer").first.wait_for()
    page.locator(".token.answer").nth(3).click()
    assert page.locator(".alternatives li").count() == 5
    assert page.locator(".token.read").count() > 0
    assert page.locator(".expert").count() == 4


def test_pages_need_the_key(chromium: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    from dsv4.server import Keys, Settings, create_app
    from dsv4.testing.stub import StubGenerator
    from tests.server.conftest import Server

    server = Server(tokenizer, StubGenerator([5, 6, 1]))
    settings = Settings(keys=Keys.parse(["ann secret-of-ann"]))
    server.app = create_app(server.generator, tokenizer, model_name="tiny", settings=settings)
    with served(server) as address:
        page = chromium.new_page()
        page.goto(f"{address}/engine")
        page.get_by_text("key", exact=False).first.wait_for(timeout=PATIENCE)
        assert page.locator(".requests").count() == 0
        page.close()


@pytest.mark.parametrize("name", PAGES)
def test_pictures(page: Any, url: str, name: str, tmp_path: Path) -> None:
    """The pictures of the documentation are made here: `DSV4_PICTURES=docs/images` keeps them."""
    import os

    folder = Path(os.environ.get("DSV4_PICTURES", tmp_path))
    opened(page, url, name)
    if name == "training":
        page.goto(f"{url}/training?runs=chain/grpo|chain/opd")
        page.wait_for_selector(READY["training"])
    if name == "model":
        page.get_by_role("button", name="Inspect").click()
        page.locator(".token.answer").first.wait_for()
        page.evaluate("document.querySelector('.page-body').scrollTop = 0")
    settled(page)
    file = folder / f"web-{name}.png"
    page.screenshot(path=str(file))
    assert file.read_bytes().startswith(b"\x89PNG")
