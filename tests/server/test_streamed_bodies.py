"""Bodies of unknown length, over a real socket: their bytes, their chunks, and clients that do not read."""

import asyncio
import http.client
import socket
import time
from collections.abc import AsyncGenerator, Sequence
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from h11._writers import ChunkedWriter
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

from dsv4.server.guard.connection import MOST_JOINED_BYTES, HeaderClock, _ChunkedBody, _DirectBody
from dsv4.server.wire.response import BODY_WRITER, EventStream
from dsv4.server.wire.sse import TextEvents, event, named_event
from tests.server.conftest import listening

PARTS = [b"one", b"", b"two", b"3" * 70_000, b"vier\n\n"]


def parts_app(parts: Sequence[bytes], *, pause: bool, headers: Sequence[tuple[bytes, bytes]] = ()) -> ASGIApp:
    """Sends `parts`; pause: each in a turn of the event loop of its own."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [*headers]})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
            if pause:
                await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b"end", "more_body": False})

    return app


def raw_answer(url: str, request: bytes) -> bytes:
    """All bytes that the server sends on one connection."""
    address = urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    return answer


def chunks_of(body: bytes) -> list[bytes]:
    """The HTTP chunks of a body, the empty last one left out."""
    chunks = []
    while True:
        size, _, rest = body.partition(b"\r\n")
        if not int(size, 16):
            assert rest == b"\r\n"
            return chunks
        chunks.append(rest[: int(size, 16)])
        assert rest[len(chunks[-1]) :][:2] == b"\r\n"
        body = rest[len(chunks[-1]) + 2 :]


@pytest.mark.parametrize("pause", [False, True])
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_the_body_is_what_uvicorn_sends(method: bytes, version: bytes, pause: bool) -> None:
    request = method + b" / HTTP/" + version + b"\r\nhost: x\r\nconnection: close\r\n\r\n"
    bodies = []
    for protocol in (HeaderClock, H11Protocol):
        with listening(SimpleNamespace(app=parts_app(PARTS, pause=pause)), http=protocol) as url:
            head, _, body = raw_answer(url, request).partition(b"\r\n\r\n")
        assert b" 200 " in head
        bodies.append(b"".join(chunks_of(body)) if b"chunked" in head and method == b"GET" else body)
    assert bodies[0] == bodies[1] == (b"" if method == b"HEAD" else b"".join(PARTS) + b"end")


@pytest.mark.parametrize("fails", [True, False])
def test_what_was_written_before_a_failure_is_sent(fails: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"one", b"two"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        if fails:
            raise ValueError("in the middle of a body")

    request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
    for protocol in (HeaderClock, H11Protocol):
        with listening(SimpleNamespace(app=app), http=protocol, log_level="critical") as url:
            body = raw_answer(url, request).partition(b"\r\n\r\n")[2]
        assert b"one" in body, protocol
        assert body.endswith(b"two\r\n"), "the empty chunk at the end is missing, so that the client sees the failure"


def test_requests_on_one_connection_are_answered_in_turn() -> None:
    requests = b"".join(
        b"GET /%d HTTP/1.1\r\nhost: x\r\n%b\r\n" % (n, b"connection: close\r\n" * (n == 2)) for n in range(3)
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path"].encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (name, b"+", name):
            await send({"type": "http.response.body", "body": part, "more_body": True})
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    with listening(SimpleNamespace(app=app), http=HeaderClock) as url:
        answers = raw_answer(url, requests).split(b"HTTP/1.1 200 OK\r\n")[1:]
    bodies = [b"".join(chunks_of(answer.partition(b"\r\n\r\n")[2])) for answer in answers]
    assert bodies == [b"/%d+/%d" % (n, n) for n in range(3)]


def test_a_body_of_known_length_has_no_chunks() -> None:
    size = str(sum(map(len, PARTS)) + 3).encode()
    app = parts_app(PARTS, pause=True, headers=[(b"content-length", size)])
    with listening(SimpleNamespace(app=app), http=HeaderClock) as url:
        answer = raw_answer(url, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert answer.partition(b"\r\n\r\n")[2] == b"".join(PARTS) + b"end"


@pytest.mark.parametrize("pause", [False, True])
def test_parts_of_one_turn_are_one_chunk(pause: bool) -> None:
    parts = [b"data: %d\n\n" % number for number in range(5)]
    with listening(SimpleNamespace(app=parts_app(parts, pause=pause)), http=HeaderClock) as url:
        answer = raw_answer(url, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    found = chunks_of(answer.partition(b"\r\n\r\n")[2])
    assert found == ([*parts, b"end"] if pause else [b"".join(parts), b"end"])


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize("layered", [False, True])
def test_events_are_the_same_around_all_layers_and_through_them(layered: bool, version: bytes) -> None:
    """Layers that copy the scope hide the connection's writer; an answer to HTTP/1.0 has none."""
    parts = [b"data: %d\n\n" % number for number in range(5)]

    async def events() -> AsyncGenerator[bytes, None]:
        for part in parts:
            yield part
            await asyncio.sleep(0)

    seen: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def watched(message: Message) -> None:
            seen.append(message.get("body", b""))
            await send(message)

        await EventStream(events())({**scope, "extensions": {}} if layered else scope, receive, watched)

    with listening(SimpleNamespace(app=app), http=HeaderClock) as url:
        answer = raw_answer(url, b"GET / HTTP/%b\r\nhost: x\r\nconnection: close\r\n\r\n" % version)
    body = answer.partition(b"\r\n\r\n")[2]
    assert (body if version == b"1.0" else b"".join(chunks_of(body))) == b"".join(parts)
    around = version == b"1.1" and not layered
    assert b"".join(seen) == (b"" if around else b"".join(parts))


def test_a_client_that_does_not_read_stops_its_own_answer_only() -> None:
    written: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        endless = scope["path"] == "/endless"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(1_000_000 if endless else 200):
            await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
            if endless:
                written.append(number)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    with listening(SimpleNamespace(app=app), http=HeaderClock) as url:
        address = urlsplit(url)
        assert address.hostname is not None
        assert address.port is not None
        with socket.create_connection((address.hostname, address.port)) as silent:
            silent.sendall(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
            before, end = -1, time.monotonic() + 30
            while len(written) != before and time.monotonic() < end:  # until no buffer has room
                before = len(written)
                time.sleep(0.2)
            assert 0 < len(written) < 100_000
            connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
            connection.request("GET", "/other")
            assert len(connection.getresponse().read()) == 200 * 1000
            connection.close()
            assert len(written) == before


def test_a_connection_that_cannot_be_written_keeps_nothing_from_the_others() -> None:
    """Both are sent at the end of the same turn of the event loop."""
    sent, told = list[bytes](), list[str]()

    def fail(data: bytes) -> None:
        raise RuntimeError("no connection")

    def body(write: object) -> _ChunkedBody:
        cycle = SimpleNamespace(
            flow=SimpleNamespace(write_paused=False), disconnected=False, transport=SimpleNamespace(write=write)
        )
        return _ChunkedBody(cycle)  # type: ignore[arg-type]

    async def both() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
        for one in (body(fail), body(sent.append)):
            await one.write(b"part")
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(both())
    assert sent == [b"4\r\npart\r\n"]
    assert told == ["a part of a body was not sent"]


@pytest.mark.parametrize("waits_first", [True, False])
def test_nothing_stands_behind_the_end_of_a_body(waits_first: bool) -> None:
    """A client that reads nothing: a sign of life and the end of the answer wait for it together."""
    sent: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start"})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        await asyncio.sleep(0)
        flow.pause_writing()
        alive = scope["extensions"][BODY_WRITER](b": alive")
        end = send({"type": "http.response.body", "body": b"", "more_body": False})
        both = [asyncio.ensure_future(one) for one in ((alive, end) if waits_first else (end, alive))]
        await asyncio.sleep(0)
        assert sent == [b"4\r\npart\r\n"]
        flow.resume_writing()
        await asyncio.gather(*both)
        await asyncio.sleep(0)

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            sent.append(b"end")

    async def receive() -> Message:
        raise AssertionError

    flow = FlowControl(SimpleNamespace())  # type: ignore[arg-type]
    cycle = SimpleNamespace(
        flow=flow,
        disconnected=False,
        transport=SimpleNamespace(write=sent.append),
        conn=SimpleNamespace(_writer=ChunkedWriter()),
    )
    connection: Any = SimpleNamespace(cycle=cycle)
    asyncio.run(_DirectBody(connection, app)({"type": "http"}, receive, send))
    assert sent == [b"4\r\npart\r\n", *([b"7\r\n: alive\r\n"] if waits_first else []), b"end"]


def test_joined_parts_are_bounded() -> None:
    part = b"y" * 1000
    with listening(SimpleNamespace(app=parts_app([part] * 300, pause=False)), http=HeaderClock) as url:
        answer = raw_answer(url, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    found = chunks_of(answer.partition(b"\r\n\r\n")[2])
    assert b"".join(found) == part * 300 + b"end"
    assert max(map(len, found)) < MOST_JOINED_BYTES + len(part)


@pytest.mark.parametrize(
    "text", ["plain", 'a "quoted" \\ word', "line\nbreak\u2028and\u2029more\x85", "日本 🙂", "", "%b {}"]
)
def test_prepared_events_are_the_events(text: str) -> None:
    def chat(text: str) -> bytes:
        return event({"id": "1", "model": 'a"b', "choices": [{"delta": {"content": text}, "finish_reason": None}]})

    def named(text: str) -> bytes:
        return named_event("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": text}})

    for make in (chat, named):
        assert TextEvents(make).event(text) == make(text)
