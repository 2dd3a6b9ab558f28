"""Stored Responses with the SDK: continue, retrieve, delete, list; keys, limits, disks, restarts, references."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from dsv4.encoding import Tokenizer
from dsv4.server import ApiError, Keys
from dsv4.server.storage import folders, responses
from dsv4.server.storage.responses import DAY_SECONDS, StoredResponses, StoreLimits
from tests.server.conftest import MODEL, Converse, Server, listening
from tests.server.test_chat import CALL, THOUGHT
from tests.server.test_responses import FUNCTION, events, post

SECRETS = {"ann": "secret-of-ann", "bob": "secret-of-bob"}
KEYS = Keys.parse([f"{name} {secret}" for name, secret in SECRETS.items()])


def stored(server: Server, folder: Path, **limits: Any) -> StoredResponses:
    store = server.app.state.backend.responses = StoredResponses(folder, StoreLimits(**limits))
    return store


@pytest.fixture
def server(serve: Converse, tmp_path: Path) -> Server:
    server = serve(THOUGHT)
    stored(server, tmp_path / "deep" / "store")
    return server


def texts(items: list[Any]) -> list[str]:
    """The texts of messages and reasoning, from items of the SDK or of JSON."""
    plain = [item if isinstance(item, dict) else item.model_dump() for item in items]
    return [part["text"] for item in plain for part in item.get("content") or ()]


def test_sdk_continues_retrieves_lists_and_deletes(server: Server, tokenizer: Tokenizer) -> None:
    async def use(client: openai.AsyncOpenAI) -> None:
        first = await client.responses.create(model=MODEL, input="One", instructions="Short.", metadata={"a": "b"})
        assert first.store
        second = await client.responses.create(model=MODEL, input="Two", previous_response_id=first.id)
        async with client.responses.stream(model=MODEL, input="Three", previous_response_id=second.id) as stream:
            async for _ in stream:
                pass
            third = await stream.get_final_response()
        assert (second.previous_response_id, third.previous_response_id) == (first.id, second.id)
        assert await client.responses.retrieve(first.id) == first
        assert (await client.responses.retrieve(third.id)).output_text == third.output_text
        page = await client.responses.input_items.list(third.id, order="asc", limit=100)
        answer = ["six times seven", "The answer is forty-two 💡."]
        assert texts(page.data) == ["One", *answer, "Two", *answer, "Three"]
        assert [item.id async for item in client.responses.input_items.list(third.id, limit=2)] == [
            item.id for item in reversed(page.data)
        ]
        rest = await client.responses.input_items.list(third.id, order="asc", after=page.data[4].id)
        assert rest.data == page.data[5:]
        await client.responses.delete(third.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(third.id)
        assert (await client.responses.retrieve(second.id)).id == second.id

    server.sdk(use)
    prompts = [tokenizer.decode(call.prompt) for call in server.generator.calls]
    assert "Short." in prompts[0]
    assert "Short." not in prompts[1]
    assert [prompts[2].count(text) for text in ("One", "Two", "Three", "forty-two")] == [1, 1, 1, 2]


def test_the_prompt_is_that_of_the_whole_conversation(serve: Converse, tmp_path: Path) -> None:
    server = serve("why" + CALL)
    stored(server, tmp_path)
    first = post(server, input="Weather?", tools=[FUNCTION]).json()
    result = {"type": "function_call_output", "call_id": first["output"][-1]["call_id"], "output": "sunny"}
    second = post(server, input=[result], tools=[FUNCTION], previous_response_id=first["id"])
    whole = [{"role": "user", "content": "Weather?"}, *first["output"], result]
    post(server, input=whole, tools=[FUNCTION], store=False)
    _, continued, sent = server.generator.calls
    assert continued.prompt == sent.prompt
    assert second.json()["usage"]["input_tokens"] == len(sent.prompt)
    body = {"input": [result], "tools": [FUNCTION], "previous_response_id": first["id"]}
    assert post(server, "/v1/responses/input_tokens", **body).json()["input_tokens"] == len(sent.prompt)
    rendered = server.request("POST", "/render", json={"api": "responses", "body": body, "tokens": True}).json()
    # the sampled tokens take the place of the call only in a request that is answered
    assert rendered["prompt"].count("sunny") == 1


def test_references_to_items(server: Server, tokenizer: Tokenizer) -> None:
    first = post(server, input="One").json()
    reference = {"type": "item_reference", "id": first["output"][-1]["id"]}
    for form in (reference, {"id": reference["id"]}):
        assert post(server, input=[form, {"role": "user", "content": "Two"}]).status_code == 200
        assert "forty-two" in tokenizer.decode(server.generator.calls[-1].prompt)
    wrong = post(server, input=[{"type": "item_reference", "id": "msg_x"}]).json()["error"]
    assert (wrong["param"], "msg_x" in wrong["message"]) == ("input[0]", True)


def test_an_item_that_is_named_often_is_read_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    first = post(server, input="One").json()
    read, inner = [], StoredResponses.item

    def item(self: StoredResponses, key: str, id: str) -> dict[str, Any] | None:
        read.append(id)
        return inner(self, key, id)

    monkeypatch.setattr(StoredResponses, "item", item)
    id = first["output"][-1]["id"]
    assert post(server, input=[{"id": id}, {"role": "user", "content": "Two"}] * 3).status_code == 200
    assert read == [id]


def test_store_false_is_not_stored_and_may_continue(server: Server) -> None:
    first = post(server, input="One").json()
    second = post(server, input="Two", previous_response_id=first["id"], store=False).json()
    assert (second["store"], second["previous_response_id"]) == (False, first["id"])
    assert server.request("GET", f"/v1/responses/{second['id']}").status_code == 404


def test_an_answer_that_does_not_end_is_not_stored(serve: Converse, tmp_path: Path) -> None:
    server = serve("word " * 9, ended=False, error="broken")
    stored(server, tmp_path)
    failed = events(server, input="One")[-1]
    assert failed["type"] == "response.failed"
    assert server.request("GET", f"/v1/responses/{failed['response']['id']}").status_code == 404


def test_a_cut_answer_is_stored_as_it_is(serve: Converse, tmp_path: Path) -> None:
    server = serve(THOUGHT)
    stored(server, tmp_path)
    first = events(server, input="One", max_output_tokens=3)[-1]
    assert first["type"] == "response.incomplete"
    assert server.request("GET", f"/v1/responses/{first['response']['id']}").json() == first["response"]


def test_a_key_sees_only_its_own(serve: Converse, tmp_path: Path) -> None:
    server = serve(THOUGHT, settings={"keys": KEYS})
    stored(server, tmp_path)

    def call(name: str, method: str, path: str = "", **body: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {SECRETS[name]}"}
        fields = {"model": MODEL, "input": "Hi", **body} if method == "POST" else None
        return server.request(method, f"/v1/responses{path}", json=fields, headers=headers)

    first = call("ann", "POST").json()
    path = f"/{first['id']}"
    reference = [{"type": "item_reference", "id": first["output"][-1]["id"]}]
    for answer in (
        call("bob", "GET", path),
        call("bob", "GET", f"{path}/input_items"),
        call("bob", "DELETE", path),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    unknown = call("bob", "POST", previous_response_id=first["id"])
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "previous_response_id")
    assert call("bob", "POST", input=reference).status_code == 400
    assert call("ann", "GET", path).json() == first
    assert server.request("GET", f"/v1/responses{path}").status_code == 401


def test_what_is_gone_is_named(server: Server) -> None:
    first = post(server, input="One").json()
    second = post(server, input="Two", previous_response_id=first["id"]).json()
    assert server.request("DELETE", f"/responses/{first['id']}").json()["deleted"] is True
    for body in ({"previous_response_id": second["id"]}, {"previous_response_id": first["id"]}):
        error = post(server, input="Three", **body).json()["error"]
        assert (error["code"], first["id"] in error["message"]) == ("previous_response_not_found", True)
    assert server.request("GET", f"/responses/{second['id']}").json() == second


def test_age(server: Server, tmp_path: Path) -> None:
    now = 1_800_000_000.0
    store = StoredResponses(tmp_path / "aged", StoreLimits(days=2), lambda: now)
    server.app.state.backend.responses = store
    first = post(server, input="One").json()
    other = post(server, input="Other").json()
    now += 1.5 * DAY_SECONDS
    second = post(server, input="Two", previous_response_id=first["id"]).json()
    now += 1.5 * DAY_SECONDS
    # the whole conversation is as old as its last response
    assert post(server, input="Three", previous_response_id=second["id"], store=False).status_code == 200
    assert server.request("GET", f"/responses/{other['id']}").status_code == 404
    now += 1.5 * DAY_SECONDS
    assert server.request("GET", f"/responses/{first['id']}").status_code == 404


def test_size(server: Server, tmp_path: Path) -> None:
    first = post(server, input="One").json()
    size = server.app.state.backend.responses._connection.execute("SELECT bytes FROM conversations").fetchone()[0]
    stored(server, tmp_path / "small", bytes=int(2.5 * size))
    ids = [post(server, input=text).json()["id"] for text in ("One", "Two", "Six")]
    found = [server.request("GET", f"/responses/{id}").status_code for id in ids]
    assert found == [404, 200, 200]
    server.request("DELETE", f"/responses/{ids[1]}")
    last = post(server, input="One more").json()["id"]
    assert [server.request("GET", f"/responses/{id}").status_code for id in (ids[2], last)] == [200, 200]
    # one conversation alone that is too large is an error, and drops no other
    large = post(server, input="x " * size)
    assert (large.status_code, large.json()["error"]["code"]) == (507, "store_full")
    assert [server.request("GET", f"/responses/{id}").status_code for id in (ids[2], last)] == [200, 200]
    assert first["id"] not in ids


def no_room(store: StoredResponses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "LEAST_FREE_BYTES", 1 << 60)


def full_file(store: StoredResponses, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count={pages}")


@pytest.mark.parametrize("break_disk", [no_room, full_file])
def test_a_full_disk_is_an_error_of_this_request_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch, break_disk: Callable[..., None]
) -> None:
    store = server.app.state.backend.responses
    first = post(server, input="One").json()
    break_disk(store, monkeypatch)
    long = "Two " * 2000 if break_disk is full_file else "Two"
    server.generator._context_length = 16_384
    full = post(server, input=long)
    assert (full.status_code, full.json()["error"]["code"]) == (507, "disk_full")
    assert full.headers["x-should-retry"] == "false"
    if break_disk is full_file:
        last = events(server, input=long)[-1]
        assert (last["type"], last["response"]["error"]["code"]) == ("response.failed", "disk_full")
    assert post(server, input=long, store=False).status_code == 200
    assert server.post().status_code == 200
    assert server.request("GET", f"/responses/{first['id']}").json() == first
    assert server.app.state.backend.running == 0


def test_responses_outlive_the_server(serve: Converse, tmp_path: Path) -> None:
    server = serve(THOUGHT)
    folder = tmp_path / "store"
    store = stored(server, folder)
    first = post(server, input="One").json()
    # as after a kill: the file is read as it is, with its write-ahead log
    shutil.copytree(folder, tmp_path / "copy")
    store.close()
    for place in (folder, tmp_path / "copy"):
        again = serve(THOUGHT)
        stored(again, place)
        assert again.request("GET", f"/responses/{first['id']}").json() == first
        assert post(again, input="Two", previous_response_id=first["id"]).status_code == 200
    assert (folder / responses.FILE).stat().st_mode & 0o077 == folder.stat().st_mode & 0o077 == 0


def test_folders_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / responses.FILE).write_bytes(b"no database" * 100)
    newer = StoredResponses(tmp_path / "newer")
    newer._connection.execute("PRAGMA user_version=9")
    newer.close()
    for name, why in (("file", "exists"), ("damaged", "not a database"), ("newer", "version 9")):
        with pytest.raises(OSError, match=f"{name}.*cannot be used as a store .*{why}"):
            StoredResponses(tmp_path / name)


def test_a_failing_disk_is_told(server: Server) -> None:
    store = server.app.state.backend.responses
    store._connection.execute("DROP TABLE items")
    answer = post(server, input="One")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "storage_failed")
    with pytest.raises(ApiError, match="disk is full"), folders.disk_errors("history"):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("?stream=true", "stream"),
        ("/input_items?limit=0", "limit"),
        ("/input_items?limit=101", "limit"),
        ("/input_items?limit=x", "limit"),
        ("/input_items?order=up", "order"),
        ("/input_items?after=msg_x", "after"),
    ],
)
def test_wrong_questions_are_named(server: Server, path: str, param: str) -> None:
    first = post(server, input="One").json()
    error = server.request("GET", f"/responses/{first['id']}{path}")
    assert (error.status_code, error.json()["error"]["param"]) == (400, param)


def test_odd_items_are_stored_too(server: Server) -> None:
    odd = [
        {"role": "user", "content": "One", "id": 5},
        {"type": "web_search_call", "id": "ws_1"},
        {"type": ["x"], "role": "user", "content": [{"type": "input_text", "text": "Two"}]},
        {"role": "assistant", "content": "Three"},
    ]
    answer = post(server, input=odd)
    if answer.status_code == 200:
        items = server.request("GET", f"/responses/{answer.json()['id']}/input_items?order=asc").json()["data"]
        assert all(isinstance(item["id"], str) for item in items)
        assert len({item["id"] for item in items}) == len(odd)
    assert answer.status_code < 500


def test_without_a_store(serve: Converse) -> None:
    server = serve(THOUGHT)
    assert post(server, store=True).json()["store"] is False
    for method, path in (("GET", "/x"), ("DELETE", "/x"), ("GET", "/x/input_items")):
        answer = server.request(method, f"/v1/responses{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_store")
    error = post(server, previous_response_id="resp_1").json()["error"]
    assert (error["param"], "--store DIR" in error["message"]) == ("previous_response_id", True)
    assert server.request("POST", "/responses/x/cancel", json={}).json()["error"]["code"] == "not_supported"


def test_sync_sdk_over_a_socket(serve: Converse, tmp_path: Path) -> None:
    server = serve(THOUGHT)
    stored(server, tmp_path)
    with (
        listening(server) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        first = client.responses.create(model=MODEL, input="One")
        with client.responses.stream(model=MODEL, input="Two", previous_response_id=first.id) as stream:
            for _ in stream:
                pass
            second = stream.get_final_response()
        assert texts(client.responses.input_items.list(second.id, order="asc").data)[-1] == "Two"
        assert client.responses.retrieve(first.id) == first
        client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(first.id)
        with pytest.raises(openai.BadRequestError, match=first.id):
            client.responses.create(model=MODEL, input="Three", previous_response_id=second.id)
        chat = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}], n=3)
        assert [choice.index for choice in chat.choices] == [0, 1, 2]
