"""Conversations that the chat page keeps on the server: routes, keys, limits, disks, restarts."""

import asyncio
import errno
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from dsv4.server import ApiError, Keys
from dsv4.server.storage import folders, history
from dsv4.server.storage.history import History
from tests.server.conftest import Converse, Server

SECRETS = {"ann": "secret-of-ann", "bob": "secret-of-bob"}
KEYS = Keys.parse([f"{name} {secret}" for name, secret in SECRETS.items()])
TALK = {"title": "Größe 💡", "messages": [{"role": "user", "content": 'He said "hi"\n日本'}], "model": "tiny"}


@pytest.fixture
def server(serve: Converse, tmp_path: Path) -> Server:
    server = serve("Yes.", settings={"keys": KEYS})
    server.app.state.backend.history = History(tmp_path / "deep" / "history")
    return server


def call(server: Server, method: str, path: str = "", name: str = "ann", **options: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {SECRETS[name]}", **options.pop("headers", {})}
    return server.request(method, f"/v1/history{path}", headers=headers, **options)


def titles(server: Server, name: str = "ann", search: str = "") -> list[str]:
    answer = call(server, "GET", name=name, params={"search": search}).json()
    return [entry["title"] for entry in answer["data"]]


def test_put_get_list_delete(server: Server) -> None:
    entry = call(server, "PUT", "/a-1", json=TALK).json()
    assert set(entry) == {"id", "title", "updated", "bytes"}
    assert call(server, "GET", "/a-1").json() == {**TALK, **entry}
    call(server, "PUT", "/b", json={"title": "second"})
    assert titles(server) == ["second", TALK["title"]]
    again = call(server, "PUT", "/a-1", json={**TALK, "title": "renamed"}).json()
    assert again["updated"] > entry["updated"]
    assert titles(server) == ["renamed", "second"]
    assert call(server, "DELETE", "/a-1").json() == {"id": "a-1", "deleted": True}
    assert [call(server, method, "/a-1").status_code for method in ("GET", "DELETE")] == [404, 404]
    assert titles(server) == ["second"]


def test_a_key_sees_only_its_own(server: Server) -> None:
    call(server, "PUT", "/same", json={"title": "of ann"})
    call(server, "PUT", "/same", name="bob", json={"title": "of bob"})
    assert (titles(server), titles(server, "bob")) == (["of ann"], ["of bob"])
    call(server, "DELETE", "/same", name="bob")
    assert call(server, "GET", "/same").json()["title"] == "of ann"
    assert server.request("GET", "/v1/history").status_code == 401


def test_search_finds_text_in_either_case(server: Server) -> None:
    call(server, "PUT", "/a", json=TALK)
    call(server, "PUT", "/b", json={"title": "other"})
    for text, found in (("SAID", 1), ('"hi"\n日', 1), ("größe", 1), ("oth", 1), ("nowhere", 0), ("", 2)):
        assert len(titles(server, search=text)) == found, text


def test_two_pages_do_not_overwrite_each_other(server: Server) -> None:
    new = {"if-match": '"0"'}
    first = call(server, "PUT", "/a", json={"title": "one"}, headers=new)
    tag = {"if-match": first.headers["etag"]}
    assert call(server, "GET", "/a").headers["etag"] == first.headers["etag"]
    assert call(server, "PUT", "/a", json={"title": "two"}, headers=tag).status_code == 200
    refused = call(server, "PUT", "/a", json={"title": "three"}, headers=tag)
    assert (refused.status_code, refused.json()["error"]["code"]) == (412, "changed")
    assert call(server, "PUT", "/a", json={"title": "three"}, headers=new).status_code == 412
    assert titles(server) == ["two"]
    assert call(server, "PUT", "/a", json=TALK, headers={"if-match": "x"}).json()["error"]["param"] == "if-match"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/Upper", TALK, "id"),
        ("/a%2e%2e", TALK, "id"),
        ("/" + "x" * 65, TALK, "id"),
        ("/a", [], "body"),
        ("/a", {"messages": []}, "title"),
        ("/a", {"title": 5}, "title"),
        ("/a", {"title": "x" * 513}, "title"),
    ],
)
def test_wrong_ids_and_documents_are_named(server: Server, path: str, body: object, param: str) -> None:
    error = call(server, "PUT", path, json=body)
    assert (error.status_code, error.json()["error"]["param"]) == (400, param)
    assert titles(server) == []


def test_limits(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    call(server, "PUT", "/a", json=TALK)
    monkeypatch.setattr(history, "MOST_CONVERSATIONS", 1)
    full = call(server, "PUT", "/b", json=TALK)
    assert (full.status_code, full.json()["error"]["code"]) == (507, "history_full")
    assert call(server, "PUT", "/a", json=TALK).status_code == 200
    assert call(server, "PUT", "/a", name="bob", json=TALK).status_code == 200
    monkeypatch.setattr(history, "MOST_BYTES", 10)
    assert call(server, "PUT", "/a", json=TALK).json()["error"]["code"] == "history_full"
    monkeypatch.setattr(history, "MOST_DOCUMENT_BYTES", 10)
    assert call(server, "PUT", "/a", json=TALK).status_code == 413
    assert titles(server) == [TALK["title"]]


def no_room(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "LEAST_FREE_BYTES", 1 << 60)


def failing_write(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(history, "write_whole", write)


@pytest.mark.parametrize("break_disk", [no_room, failing_write])
def test_a_full_disk_is_an_error_and_touches_nothing_else(
    server: Server, monkeypatch: pytest.MonkeyPatch, break_disk: Callable[..., None]
) -> None:
    call(server, "PUT", "/a", json={"title": "old"})
    break_disk(server, monkeypatch)
    full = call(server, "PUT", "/a", json={"title": "new"})
    assert (full.status_code, full.json()["error"]["code"]) == (507, "disk_full")
    assert titles(server) == ["old"]
    assert call(server, "DELETE", "/a").status_code == 200
    key = {"authorization": f"Bearer {SECRETS['ann']}"}
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    assert server.request("POST", "/v1/chat/completions", json=body, headers=key).status_code == 200


def test_files_outlive_the_server_and_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "history"
    first = History(folder)
    asyncio.run(first.put("", "a", {"title": "kept"}))
    first.close()
    (file,) = folder.rglob("*.json")
    unfinished = file.with_name("b.json.tmp")
    unfinished.write_bytes(b"{")
    file.with_name("broken.json").write_text("no json")
    again = History(folder)
    assert not unfinished.exists()
    assert [entry.title for entry in asyncio.run(again.entries(""))] == ["kept"]
    assert asyncio.run(again.get("", "a"))["title"] == "kept"
    assert folder.stat().st_mode & 0o077 == file.parent.stat().st_mode & 0o077 == 0


def test_writes_at_the_same_time_leave_one_whole_document(tmp_path: Path) -> None:
    kept = History(tmp_path)

    async def write() -> None:
        documents = [{"title": str(number), "text": str(number) * 50_000} for number in range(20)]
        await asyncio.gather(*(kept.put("", "a", document) for document in documents))

    asyncio.run(write())
    document = asyncio.run(kept.get("", "a"))
    assert document["text"] == document["title"] * 50_000


def held_writes(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """A write now sets the first event, and waits for the second one."""
    begun, go_on, plain = threading.Event(), threading.Event(), history.write_whole

    def slow(file: Path, write: Any) -> None:
        begun.set()
        assert go_on.wait(60)
        plain(file, write)

    monkeypatch.setattr(history, "write_whole", slow)
    return begun, go_on


def test_two_servers_keep_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = History(tmp_path), History(tmp_path)
    known = asyncio.run(one.put("", "a", {"title": "first"})).updated
    begun, go_on = held_writes(monkeypatch)

    async def run() -> list[object]:
        first = asyncio.ensure_future(one.put("", "a", {"title": "of one"}, known))
        await asyncio.to_thread(begun.wait, 60)
        second = asyncio.ensure_future(other.put("", "a", {"title": "of the other"}, known))
        await asyncio.sleep(0.1)
        assert not second.done()
        go_on.set()
        return await asyncio.gather(first, second, return_exceptions=True)

    _, refused = asyncio.run(run())
    assert isinstance(refused, ApiError)
    assert refused.status == 412
    assert asyncio.run(other.get("", "a"))["title"] == "of one"


def test_a_conversation_that_another_server_deletes_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = History(tmp_path), History(tmp_path)
    known = asyncio.run(one.put("", "a", {"title": "first"})).updated
    begun, go_on = held_writes(monkeypatch)

    async def run() -> None:
        put = asyncio.ensure_future(one.put("", "a", {"title": "second"}, known))
        await asyncio.to_thread(begun.wait, 60)
        deleted = asyncio.ensure_future(other.delete("", "a"))
        await asyncio.sleep(0.1)
        go_on.set()
        await asyncio.gather(put, deleted)

    asyncio.run(run())
    assert asyncio.run(other.entries("")) == []
    with pytest.raises(ApiError, match="a"):
        asyncio.run(other.delete("no conversations", "a"))


def test_a_folder_on_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("dsv4.files.fcntl.flock", none)
    asyncio.run(History(tmp_path).put("", "a", {"title": "kept"}))
    assert asyncio.run(History(tmp_path).get("", "a"))["title"] == "kept"


def test_without_a_folder_there_is_none(serve: Converse) -> None:
    server = serve("Yes.")
    for method, path in (("GET", ""), ("GET", "/a"), ("PUT", "/a"), ("DELETE", "/a")):
        answer = server.request(method, f"/history{path}", json={"title": "x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_history")


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text(json.dumps(TALK))
    with pytest.raises(OSError, match="file"):
        History(file)
    with pytest.raises(ApiError, match="id"):
        asyncio.run(History(tmp_path / "folder").get("", "../file"))


def test_a_conversation_that_another_program_changed_is_an_error_of_its_own(server: Server, tmp_path: Path) -> None:
    call(server, "PUT", "/a", json=TALK)
    (file,) = tmp_path.glob("deep/history/*/a.json")
    file.write_bytes(file.read_bytes()[:-20])
    answer = call(server, "GET", "/a")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "storage_failed")


def test_a_long_search_of_one_key_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, go_on = History(tmp_path), threading.Event()
    begun = threading.Event()
    plain = History._entries

    def slow(self: History, key: str, search: str) -> list[history.Entry]:
        if search:
            begun.set()
            assert go_on.wait(60)
        return plain(self, key, search)

    monkeypatch.setattr(History, "_entries", slow)
    # two names of keys that have not the same thread
    other = next(name for name in map(str, range(99)) if kept._thread(name) is not kept._thread("ann"))

    async def run() -> list[str]:
        search = asyncio.ensure_future(kept.entries("ann", "text"))
        await asyncio.to_thread(begun.wait, 60)
        write = asyncio.ensure_future(kept.put("ann", "a", {"title": "after the search"}))
        await kept.put(other, "a", {"title": "beside it"})
        order = [str(write.done())]
        go_on.set()
        return [*order, *[entry.title for entry in await search], (await write).title]

    # the search does not see the write that waited for it
    assert asyncio.run(run()) == ["False", "after the search"]
    kept.close()
