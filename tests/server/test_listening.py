"""The server's own sockets: small writes go at once, connections are bounded, heads strict, and the end is orderly."""

import errno
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dsv4.cli.listener import Listener, connection_limit, open_listener
from dsv4.server.draining import DrainingServer
from dsv4.server.guard.connection import MOST_HEADER_BYTES, HeaderClock
from tests.server.conftest import Converse, Server

GET = b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
USER = {"role": "user", "content": "Hi"}


@contextmanager
def draining(server: Server, drain: float = 10.0, most: int | None = None) -> Iterator[DrainingServer]:
    """The application behind the sockets of `dsv4 serve`, stopped at the end."""
    ready = threading.Event()
    listener = open_listener("127.0.0.1", 0)
    listener.most = most
    running = DrainingServer(server.app, server.app.state.backend, listener, ready.set, drain)
    thread = threading.Thread(target=running.run, args=([listener],))
    running.address = listener.getsockname()  # type: ignore[attr-defined]
    thread.start()
    try:
        assert ready.wait(10)
        yield running
    finally:
        running.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def connect(server: DrainingServer) -> socket.socket:
    return socket.create_connection(server.address, timeout=10)  # type: ignore[attr-defined]


def answer(server: DrainingServer, sent: bytes) -> bytes:
    """Everything the server says until it hangs up."""
    with connect(server) as connection:
        connection.sendall(sent)
        parts = []
        try:
            while part := connection.recv(65536):
                parts.append(part)
        except (ConnectionError, TimeoutError):
            pass
        return b"".join(parts)


def post(path: str, fields: dict[str, Any], extra: str = "") -> bytes:
    body = json.dumps(fields).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{extra}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def test_small_writes_go_out_at_once(serve: Converse) -> None:
    with draining(serve("x")) as server, connect(server) as connection:
        connection.sendall(GET)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        (protocol,) = server.server_state.connections
        accepted = protocol.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_idle_connections_make_room(serve: Converse) -> None:
    with draining(serve("x"), most=4) as server:
        idle = [connect(server) for _ in range(12)]
        with connect(server) as connection:
            connection.sendall(GET)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            assert len(server.server_state.connections) <= 4
        assert idle[0].recv(1) == b""  # the oldest went first
        for one in idle:
            one.close()


def test_busy_connections_stay(serve: Converse) -> None:
    server = serve([300] * 60, delay=0.01)
    with draining(server, most=2) as running, connect(running) as first, connect(running) as second:
        for connection in (first, second):
            connection.sendall(post("/chat/completions", {"messages": [USER], "max_tokens": 50}))
        while len(server.generator.calls) < 2:
            time.sleep(0.01)
        with connect(running) as third:
            third.sendall(GET)
            assert first.recv(65536).startswith(b"HTTP/1.1 200")
            assert second.recv(65536).startswith(b"HTTP/1.1 200")
            assert third.recv(65536).startswith(b"HTTP/1.1 200")


def test_no_descriptors_is_told_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: socket.socket) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket.socket, "accept", full)
    kinds = []
    with Listener() as listener:
        for _ in range(50):
            with pytest.raises(OSError) as caught:
                listener.accept()
            kinds.append(isinstance(caught.value, BlockingIOError))
    assert kinds == [False] + [True] * 49
    assert connection_limit() >= 4


LONG = b"x-long: " + b"a" * MOST_HEADER_BYTES + b"\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"POST /tokenize HTTP/1.1\r\nhost: ::1\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /health HTTP/1.1\nhost: 127.0.0.1\n\n",
        b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx-a: b\nx-c: d\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx-a: b\rx-c: d\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx-a: b\r\n folded\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n" + LONG + b"\r\n",
        b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n" + LONG[:40_000] + b"\r\n" + LONG[:40_000] + b"\r\n\r\n",
    ],
)
def test_loose_heads_are_refused(serve: Converse, head: bytes) -> None:
    with draining(serve("x")) as server:
        text = answer(server, head + GET)
    assert text.count(b"HTTP/1.1 ") == 1
    assert b"HTTP/1.1 400" in text


def test_strict_heads_are_read(serve: Converse) -> None:
    chunked = b"POST /detokenize HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\n\r\n"
    body = b'e\r\n{"tokens": [5]\r\n1\r\n}\r\n0\r\nx-trailer: a\r\n\r\n'
    last = b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"
    with draining(serve("x")) as server:
        assert answer(server, chunked + body + GET + last).count(b"HTTP/1.1 200") == 3


def test_the_rest_of_a_refused_body_does_not_last(serve: Converse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HeaderClock, "header_seconds", 0.3)
    with draining(serve("x")) as server, connect(server) as connection:
        connection.sendall(b"POST /tokenize HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 999999999\r\n\r\n{")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")
        end = time.monotonic() + 10
        while time.monotonic() < end:
            try:
                connection.sendall(b" ")
            except ConnectionError:
                return
            time.sleep(0.05)
    raise AssertionError("the server waited for ten seconds")


STREAMS = {
    "/chat/completions": {"messages": [USER]},
    "/completions": {"prompt": "Hi"},
    "/messages": {"messages": [USER], "max_tokens": 5000},
    "/responses": {"input": "Hi"},
}


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize("stream", [True, False])
def test_the_end_of_a_drain_is_an_error(
    serve: Converse, path: str, stream: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve([300] * 4000, delay=0.02, context_length=9000)
    with draining(server, drain=0.2) as running, connect(running) as connection:
        connection.sendall(post(path, {**STREAMS[path], "stream": stream}))
        while not server.generator.calls or server.generator.calls[0].emitted < 3:
            time.sleep(0.01)
        running.should_exit = True
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    text = b"".join(parts).decode()
    assert "the server is stopping" in text
    assert "[DONE]" not in text
    assert "Traceback" not in capsys.readouterr().err
    if stream:
        assert text.endswith("0\r\n\r\n")
        last = text.split("\r\n\r\n", 1)[1].rsplit("data: ", 1)[1]
        assert "the server is stopping" in last
    else:
        assert f" {529 if path == '/messages' else 503} " in text.splitlines()[0]
    backend = server.app.state.backend
    assert (backend.running, backend.admission.inside) == (0, 0)
    assert server.generator.calls[0].closed_early


def test_what_is_quick_is_finished(serve: Converse) -> None:
    server = serve([300] * 30, delay=0.02)
    with draining(server, drain=20) as running, connect(running) as connection:
        connection.sendall(post("/chat/completions", {"messages": [USER], "stream": True, "max_tokens": 20}))
        while not server.generator.calls:
            time.sleep(0.01)
        running.should_exit = True
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    assert b"data: [DONE]" in b"".join(parts)
