"""The chat page in Chromium: questions, streams, branches, what is kept, and a server that dies and comes back."""

import json
import os
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.web.browsers import BROWSER_MARKS, PHONE, WIDE, serious
from tests.web.chat_site import ChatSite

pytestmark = BROWSER_MARKS
PICTURES = os.environ.get("DSV4_PICTURES")
PATIENCE = 120_000  # milliseconds: a busy machine is no fault
SUM = "What is the sum of 347 and 285?"
STORY = "Write a long story"


# of answers text_content is read: inner_text has nothing of a section that the browser has not laid out yet
def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name, exact=True)


@pytest.fixture(scope="module")
def site() -> Iterator[ChatSite]:
    site = ChatSite()
    site.start()
    yield site
    site.kill()


@pytest.fixture
def page(site: ChatSite, chromium: Any) -> Iterator[Any]:
    """The chat in a browser that keeps nothing yet. Errors of scripts and of the content policy fail the test."""
    context = chromium.new_context(viewport=WIDE, accept_downloads=True)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if "Content Security Policy" in line.text else None)
    page.goto(site.url)
    button(page, SUM).wait_for()
    yield page
    context.close()
    assert not faults


def ask(page: Any, text: str) -> None:
    page.get_by_label("Question", exact=True).fill(text)
    page.keyboard.press("Enter")


def answered(page: Any, count: int = 1) -> None:
    """Until so many answers are complete."""
    page.wait_for_function(
        "count => document.querySelectorAll('.answer').length === count && !document.querySelector('[aria-busy=true]')",
        arg=count,
    )
    button(page, "Stop").wait_for(state="detached")  # the conversation is kept, and takes the next question


def reads(page: Any, selector: str, text: str) -> None:
    """Until an element has a text."""
    page.locator(selector, has_text=text).first.wait_for()


def test_a_question_is_answered_and_kept(page: Any) -> None:
    button(page, SUM).click()
    answered(page)
    assert page.locator(".bubble").inner_text() == SUM
    reads(page, ".thinking summary", "29 tokens")
    assert page.locator(".thinking-text").count() == 0  # folded
    page.locator(".thinking summary").click()
    reads(page, ".thinking-text", "The user wants a sum.")
    assert page.locator(".answer table tbody tr").count() == 3
    assert page.locator(".answer ol li ul li").count() == 2
    page.locator(".answer .katex").first.wait_for()
    reads(page, ".figures", "prompt 19, 7 cached")
    page.reload()
    answered(page)
    assert page.locator(".answer strong").first.text_content() == "632"
    ask(page, "Show the prompt")
    answered(page, 2)
    text = page.locator(".answer").nth(1).text_content()
    assert SUM in text
    assert "The sum is" in text
    assert page.locator(".entry").count() == 1


def test_an_answer_that_a_reload_ended_was_not_stopped_by_the_user(page: Any) -> None:
    ask(page, STORY)
    reads(page, ".answer", "Sentence 3 of")
    page.reload()
    reads(page, ".outcome", "loaded again")
    button(page, "Answer again").wait_for()


def test_stopping_and_answering_again(page: Any) -> None:
    ask(page, STORY)
    reads(page, ".answer", "Sentence 3 of")
    button(page, "Stop").click()
    reads(page, ".outcome", "You stopped this answer.")
    first = page.locator(".answer .markdown").text_content()
    assert "Sentence 399" not in first
    button(page, "Answer again").click()
    reads(page, ".answer", "Sentence 3 of")
    page.keyboard.press("Escape")
    reads(page, ".outcome", "You stopped this answer.")
    assert page.locator(".siblings").inner_text().split() == ["2", "/", "2"]
    button(page, "Previous version").click()
    reads(page, ".siblings", "1 / 2")
    assert page.locator(".answer .markdown").text_content() == first


def test_an_answer_that_was_cut_goes_on(page: Any) -> None:
    button(page, "Chat settings").click()
    page.get_by_label("Longest answer").fill("12")
    page.get_by_role("button", name="Done").click()
    page.get_by_role("radio", name="Off").check()
    ask(page, "Show the prompt")
    reads(page, ".outcome", "cut off at the limit")
    begun = page.locator(".answer .markdown").text_content()
    tokens = int(page.locator(".figures").inner_text().split()[0])
    with page.expect_request("**/v1/chat/completions") as sent:
        button(page, "Continue").click()
    last = sent.value.post_data_json["messages"][-1]
    assert (last["role"], last["prefix"], last["content"].startswith(begun[:9])) == ("assistant", True, True)
    page.wait_for_function(
        "length => document.querySelector('.answer .markdown').textContent.length > length", arg=len(begun)
    )
    answered(page)
    assert page.locator(".answer .markdown").text_content().startswith(begun)
    assert page.locator(".siblings").count() == 0
    assert int(page.locator(".figures").inner_text().split()[0]) > tokens
    page.reload()
    answered(page)
    assert page.locator(".answer .markdown").text_content().startswith(begun)


def test_editing_makes_a_branch(page: Any) -> None:
    ask(page, "Who are you?")
    answered(page)
    page.keyboard.press("ArrowUp")
    page.get_by_label("Edit the question").fill("Who are you, in one word?")
    page.keyboard.press("Enter")
    reads(page, ".siblings", "2 / 2")
    answered(page)
    assert page.locator(".bubble").all_inner_texts() == ["Who are you, in one word?"]
    button(page, "Previous version").click()
    reads(page, ".bubble", "Who are you?")
    answered(page)
    button(page, "More").click()
    page.get_by_role("menuitem", name="Branch into a new chat").click()
    reads(page, "h1", "(branch)")
    assert page.locator(".entry").count() == 2
    assert page.locator(".siblings").count() == 0
    ask(page, SUM)
    answered(page, 2)
    page.get_by_role("link", name="Who are you?", exact=True).click()
    answered(page, 1)


def test_a_question_is_answered_in_its_own_conversation(page: Any) -> None:
    # drawing takes microtasks, keeping takes a task: another conversation is opened before the question is kept
    page.evaluate(
        """async () => {
            const named = (name) => [...document.querySelectorAll("button")].find((one) => one.textContent === name);
            named("Who are you?").click();
            for (let turn = 0; turn < 50; turn += 1) await null;
            named("New chat").click();
        }"""
    )
    button(page, "Actions for Who are you?").wait_for()
    button(page, SUM).wait_for()
    assert page.locator(".entry").count() == 1
    page.get_by_role("link", name="Who are you?", exact=True).click()
    answered(page)
    reads(page, ".answer", "Hello from the model.")


def test_a_question_that_is_asked_while_the_page_begins(page: Any, site: ChatSite) -> None:
    # the list of conversations is held until there is a question to ask, which is asked as soon as the list is read
    page.add_init_script(
        """{
            const late = (request) => {
                let handler;
                Object.defineProperty(request, "onsuccess", { set(given) { handler = given; } });
                const opened = new Promise((done) => request.addEventListener("success", done));
                const begun = new Promise((done) => { window.begin = done; });
                void Promise.all([opened, begun]).then(() => handler());
                return request;
            };
            const { open } = IDBFactory.prototype;
            IDBFactory.prototype.open = function (...names) { return late(open.apply(this, names)); };
            const { getAll } = IDBObjectStore.prototype;
            IDBObjectStore.prototype.getAll = function (...names) {
                const request = getAll.apply(this, names);
                const ask = () => document.querySelector(".suggestions li:last-child button").click();
                request.addEventListener("success", () => setTimeout(ask), { once: true });
                return request;
            };
        }"""
    )
    page.goto(site.url)
    button(page, SUM).wait_for()
    page.evaluate("begin()")
    answered(page)
    reads(page, ".answer", "Hello from the model.")
    assert page.locator(".entry").count() == 1


def test_conversations_are_found_renamed_deleted_and_moved(page: Any, tmp_path: Path) -> None:
    ask(page, SUM)
    answered(page)
    page.keyboard.press("Control+Shift+O")
    button(page, SUM).wait_for()
    ask(page, "Who are you?")
    answered(page)
    page.keyboard.press("Control+K")
    page.keyboard.type("hundreds")
    reads(page, ".day", "1 conversation")
    reads(page, ".entry-excerpt", "hundreds")
    page.get_by_label("Search the conversations").fill("")
    button(page, "Actions for Who are you?").click()
    page.get_by_role("menuitem", name="Rename").click()
    page.get_by_label("Title", exact=True).fill("Names")
    page.keyboard.press("Enter")
    reads(page, ".entry-title", "Names")
    button(page, "Import and export").click()
    with page.expect_download() as download:
        page.get_by_role("menuitem", name="Export all").click()
    file = tmp_path / "all.json"
    download.value.save_as(file)
    titles = {entry["conversation"]["title"] for entry in json.loads(file.read_text())["conversations"]}
    assert titles == {"Names", SUM}
    button(page, "Actions for Names").click()
    page.get_by_role("menuitem", name="Delete").click()
    reads(page, ".toast", "Deleted")
    message, question = (page.locator(where).bounding_box() for where in (".toast", ".composer-box"))
    assert message["y"] + message["height"] < question["y"]
    assert page.locator(".entry").count() == 1
    page.get_by_role("button", name="Undo").click()
    reads(page, ".entry-title", "Names")
    page.get_by_label("File with conversations").set_input_files(file)
    page.wait_for_function("() => document.querySelectorAll('.entry').length === 4")
    page.get_by_label("File with conversations").set_input_files(ROOT / "web" / "package.json")
    reads(page, ".toast", "holds no conversations")


def test_what_a_conversation_is_told(page: Any) -> None:
    button(page, "Chat settings").click()
    page.get_by_label("System prompt").fill("Speak like a pirate.")
    page.get_by_label("Temperature").fill("0.3")
    page.get_by_role("button", name="Done").click()
    page.get_by_role("radio", name="Off").check()
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "Show the prompt")
    body = sent.value.post_data_json
    assert (body["temperature"], body["reasoning_effort"]) == (0.3, "none")
    answered(page)
    reads(page, ".answer", "Speak like a pirate.")
    assert page.locator(".thinking").count() == 0
    button(page, "Chat settings (changed)").wait_for()


def test_an_empty_answer_says_so(page: Any) -> None:
    ask(page, "Be silent")
    reads(page, ".notice", "The model ended its answer without writing anything.")
    ask(page, "Leave it blank")
    reads(page, ".notice", "The model thought, but wrote no answer.")


def test_what_a_model_writes_is_text(page: Any) -> None:
    ask(page, "Try an attack <img src=x onerror='window.hacked=1'>")
    answered(page)
    page.locator(".thinking summary").click()
    reads(page, ".thinking-text", "<img src=x")
    assert page.locator(".talk img, .talk script, .side img, .answer a").count() == 0
    assert page.evaluate("window.hacked") is None


def test_a_server_that_dies_and_comes_back(page: Any, site: ChatSite) -> None:
    ask(page, STORY)
    reads(page, ".answer", "Sentence 3 of")
    site.kill()
    try:
        reads(page, ".notice.bad", "The connection broke off in the middle of the answer.")
        assert "Sentence 3 of" in page.locator(".answer .markdown").text_content()
        page.locator(".dot.offline").wait_for()
        page.get_by_role("button", name="Try again").click()
        reads(page, ".notice.bad", "The server does not answer. It may have stopped, or it is starting.")
    finally:
        site.start()
    page.locator(".dot.online").wait_for()
    page.get_by_role("button", name="Try again").click()
    reads(page, ".answer", "Sentence 3 of")
    button(page, "Stop").click()
    reads(page, ".siblings", "2 / 2")


def test_a_key_is_asked_for(page: Any) -> None:
    def locked(route: Any) -> None:
        if route.request.headers.get("authorization") == "Bearer secret":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": {"message": "a key is needed"}})

    ask(page, SUM)
    answered(page)
    page.route("**/v1/**", locked)
    page.reload()
    page.get_by_role("dialog", name="This server needs a key").wait_for()
    page.get_by_label("API key").fill("wrong")
    page.get_by_role("button", name="Use key").click()
    reads(page, ".bad-text", "a key is needed")
    page.get_by_label("API key").fill("secret")
    page.get_by_role("button", name="Use key").click()
    page.locator(".dot.online").wait_for()
    # what was there before the key is the key's now
    reads(page, ".entry-title", SUM)
    button(page, "New chat").click()
    ask(page, "Who are you?")
    answered(page)


def test_each_key_has_its_own_conversations(page: Any) -> None:
    def use(key: str) -> None:
        button(page, "Settings").click()
        page.get_by_label("API key").fill(key)
        with page.expect_event("load"):
            page.get_by_role("button", name="Use key").click()
        button(page, SUM).wait_for()

    use("secret-of-ann")
    ask(page, "Who are you?")
    answered(page)
    page.goto(page.url.partition("?")[0])
    use("secret-of-bob")
    reads(page, ".none", "Conversations stay in this browser.")
    use("secret-of-ann")
    reads(page, ".entry-title", "Who are you?")
    names = page.evaluate("indexedDB.databases().then((list) => list.map(({name}) => name))")
    assert not [name for name in names if "secret" in name]


def test_keys_and_the_side_bar(page: Any) -> None:
    page.keyboard.press("Control+/")
    page.get_by_role("dialog", name="Keys").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("Control+B")
    button(page, "Show the side bar").click()
    page.get_by_role("link", name="Engine").click()
    reads(page, "h1", "Engine")
    page.go_back()
    button(page, SUM).wait_for()


def test_escape_closes_the_drawer_of_a_phone(page: Any) -> None:
    page.set_viewport_size(PHONE)
    button(page, "Show the side bar").click()
    page.get_by_role("link", name="Engine").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Engine").wait_for(state="hidden")
    ask(page, "Who are you?")
    answered(page)


def kept_by(site: ChatSite, counts: list[int]) -> None:
    """Until the server has conversations with so many finished messages each."""
    end = time.monotonic() + PATIENCE / 1000
    while True:
        entries = read_json(f"{site.url}/v1/history")["data"]
        documents = [read_json(f"{site.url}/v1/history/{entry['id']}") for entry in entries]
        found = [sum(message["state"] == "done" for message in document["messages"]) for document in documents]
        if found == counts:
            return
        assert time.monotonic() < end, found
        time.sleep(0.5)


def read_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as response:
        return json.load(response)


def test_a_server_keeps_conversations_for_all_browsers(chromium: Any, tmp_path: Path) -> None:
    site = ChatSite(history=tmp_path / "history")
    site.start()
    contexts = [chromium.new_context(viewport=WIDE) for _ in range(2)]
    try:
        first, second = (context.new_page() for context in contexts)
        for page in (first, second):
            page.set_default_timeout(PATIENCE)
        first.goto(site.url)
        ask(first, "Who are you?")
        answered(first)
        kept_by(site, [2])
        second.goto(site.url)
        reads(second, ".entry-title", "Who are you?")
        second.get_by_role("link", name="Who are you?").click()
        answered(second)
        ask(second, SUM)
        answered(second, 2)
        kept_by(site, [4])
        first.reload()
        answered(first, 2)
        button(first, "Actions for Who are you?").click()
        first.get_by_role("menuitem", name="Delete").click()
        kept_by(site, [])
        second.reload()
        reads(second, ".none", "Conversations stay in this browser.")
    finally:
        for context in contexts:
            context.close()
        site.kill()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_nothing_is_cut_off_or_hard_to_use(page: Any, theme: str, size: dict[str, int]) -> None:
    page.emulate_media(color_scheme=theme)
    page.set_viewport_size(size)
    assert serious(page) == []
    ask(page, SUM)
    answered(page)
    page.locator(".answer .katex").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert serious(page) == []
    name = {("light", 1280): "web-chat", ("dark", 1280): "web-chat-dark", ("light", 390): "web-chat-phone"}
    if PICTURES and (picture := name.get((theme, size["width"]))):
        page.screenshot(path=Path(PICTURES) / f"{picture}.png")
    button(page, "Chat settings").click()
    page.get_by_role("dialog").wait_for()
    assert serious(page) == []
