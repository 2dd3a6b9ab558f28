"""Connections that dribble the head of a request are closed; patient use of one connection is not."""

import http.client
import socket
import time
from urllib.parse import urlsplit

import pytest

from dsv4.server.guard.connection import HeaderClock
from tests.server.conftest import Converse, listening

LIMIT = 0.3


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> type[HeaderClock]:
    monkeypatch.setattr(HeaderClock, "header_seconds", LIMIT)
    return HeaderClock


def dribble(address: tuple[str, int], sent: bytes) -> bytes:
    """Send some bytes, then one more after another until the server hangs up; what it answered."""
    with socket.create_connection(address) as connection:
        connection.settimeout(0.05)
        connection.sendall(sent)
        answer = b""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                part = connection.recv(4096)
            except TimeoutError:
                connection.sendall(b"x")
                continue
            except ConnectionError:
                return answer
            if not part:
                return answer
            answer += part
    raise AssertionError("the server waited for half a minute")


@pytest.mark.parametrize("head", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx-slow: "])
def test_a_slow_head_is_cut_off(serve: Converse, quick: type[HeaderClock], head: bytes) -> None:
    with listening(serve("x"), http=quick) as url:
        address = urlsplit(url)
        assert address.hostname is not None
        assert address.port is not None
        # uvicorn answers 400 to bytes that can be no request
        assert b" 200 " not in dribble((address.hostname, address.port), head)


def test_a_slow_head_behind_a_good_request(serve: Converse, quick: type[HeaderClock]) -> None:
    first = b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
    with listening(serve("x"), http=quick) as url:
        address = urlsplit(url)
        assert address.hostname is not None
        assert address.port is not None
        answer = dribble((address.hostname, address.port), first + b"GET /health HTTP/1.1\r\nx-slow: ")
        assert answer.count(b"HTTP/1.1 200") == 1


def test_a_slow_answer_on_a_kept_connection_is_not(serve: Converse, quick: type[HeaderClock]) -> None:
    server = serve([300] * 20, delay=2 * LIMIT / 20)
    with listening(server, http=quick) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc)
        for _ in range(2):
            body = '{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20}'
            connection.request("POST", "/v1/chat/completions", body)
            response = connection.getresponse()
            assert response.status == 200
            assert response.read()
            time.sleep(LIMIT * 1.5)  # nothing at all for a while is no slow head
        connection.close()
