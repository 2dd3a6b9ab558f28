"""A client for a server that speaks OpenAI's interface: whole answers, streams, and the command that repeats a request.

Standard library only, and blocking: a check asks one thing at a time, and the check of batches has a thread for each
request.
"""

import http.client
import json
import math
import os
import shlex
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from dsv4.verify.answer import Answer, answer_of, completion_of, merge

KEY_VARIABLE = "DSV4_VERIFY_KEY"
CHAT = "/v1/chat/completions"
READ_BYTES = 2**16
MOST_BODY = 2**26  # bytes of an answer, and of a line of a stream
Body = Mapping[str, Any]


class UnreachableError(ConnectionError):
    """The endpoint cannot be reached, says nothing for too long, or answers what is not HTTP."""


class TimeUp(Exception):
    """The time for a request, or for the whole run, is over."""


class RefusedError(Exception):
    """The endpoint answered with another status than 200. status: of HTTP. command: repeats the request."""

    def __init__(self, status: int, message: str, command: str) -> None:
        super().__init__(f"status {status}: {message}")
        self.status, self.command = status, command


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. value: the decoded JSON, or the text where it is none."""

    status: int
    value: Any


@dataclass(slots=True)
class Endpoint:
    """url: of the server, with or without `/v1`. model: the name in requests; "" = none is sent. key: of the client.
    silence: seconds without a byte after which the endpoint counts as lost. until: when the run is over, in the time of
    time.monotonic: then requests raise TimeUp, also in the middle of an answer. requests: how many were sent."""

    url: str
    model: str = ""
    key: str = ""
    silence: float = 120.0
    until: float = math.inf
    requests: int = 0
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if "@" in parts.netloc:
            # not repeated: it holds a password, which would stand in reports
            raise ValueError("URL must be http://host:port, without a user or a password before the host")
        usable = parts.scheme in ("http", "https") and parts.hostname and _has_port(parts)
        if not usable or parts.query or parts.fragment or " " in self.url or not self.url.isprintable():
            raise ValueError(f"URL must be http://host:port or https://host:port, got {self.url!r}")
        if not self.key.isprintable():  # http.client would refuse it with the key in the message
            raise ValueError("the key must be printable, without line ends")
        self.url = self.url.rstrip("/").removesuffix("/v1")

    @classmethod
    def from_environment(cls, url: str, model: str = "", variable: str = KEY_VARIABLE) -> "Endpoint":
        """With the key of one environment variable. No other is read: a key that was made for one service must not
        travel to another."""
        return cls(url, model, os.environ.get(variable, ""))

    def get(self, path: str) -> Reply:
        """One GET request. Raises UnreachableError."""
        return self._send("GET", path, None)

    def post(self, path: str, body: Body) -> Reply:
        """One POST request of JSON, whatever its status. Raises UnreachableError."""
        return self._send("POST", path, json.dumps(body).encode())

    def chat(self, body: Body) -> Answer:
        """A whole chat completion. Raises RefusedError, UnreachableError."""
        return answer_of(self._value(CHAT, body))

    def completion(self, body: Body) -> Answer:
        """A whole text completion. Raises RefusedError, UnreachableError."""
        return completion_of(self._value("/v1/completions", body))

    def stream(self, body: Body) -> Answer:
        """A streamed chat completion, put together; its `problems` name what is wrong with the stream itself. Raises
        RefusedError, UnreachableError."""
        return merge(self.events(self.streaming(body)))

    def streaming(self, body: Body) -> Body:
        """The whole body of a request whose answer is streamed and ends with its tokens."""
        return self._named({**body, "stream": True, "stream_options": {"include_usage": True}})

    def events(self, body: Body, until: float = math.inf) -> Iterator[str]:
        """The data of each event of a streamed chat completion, as soon as it comes. body: as it is sent, so with
        `stream`. until: as that of the endpoint, for this request. Raises RefusedError, UnreachableError, TimeUp."""
        until = min(until, self.until)
        with self._response("POST", CHAT, json.dumps(self._named(body)).encode(), until) as response:
            if response.status != 200:
                self._refuse(Reply(response.status, decoded(self._body(response, until))), CHAT, body)
            yield from _events(self._pieces(response, until))

    def check_time(self) -> None:
        """Raise TimeUp when the time of the run is over."""
        _check_time(self.until)

    def command(self, path: str, body: Body) -> str:
        """A shell command that sends the request again. It has no key, only the name of its variable."""
        key = f' -H "authorization: Bearer ${KEY_VARIABLE}"' if self.key else ""
        data = shlex.quote(json.dumps(self._named(body), ensure_ascii=False))
        return f"curl -s {self.url}{path} -H 'content-type: application/json'{key} -d {data}"

    def _value(self, path: str, body: Body) -> Any:
        reply = self.post(path, self._named(body))
        if reply.status != 200 or not isinstance(reply.value, dict):
            self._refuse(reply, path, body)
        return reply.value

    def _refuse(self, reply: Reply, path: str, body: Body) -> None:
        raise RefusedError(reply.status, error_text(reply.value), self.command(path, body))

    def _named(self, body: Body) -> Body:
        return {"model": self.model, **body} if self.model else body

    def _connection(self, until: float) -> http.client.HTTPConnection:
        parts, patience = urlsplit(self.url), max(0.001, min(self.silence, until - time.monotonic()))
        assert parts.hostname is not None  # checked at the start
        if parts.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=patience, context=context)
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=patience)

    @contextmanager
    def _response(self, method: str, path: str, data: bytes | None, until: float) -> Iterator[http.client.HTTPResponse]:
        """The response to a request, which the block reads. An error of the connection, also in the block, means that
        the endpoint is lost."""
        headers: dict[str, str | bytes] = {"content-type": "application/json", "connection": "close"}
        if self.key:
            headers["authorization"] = f"Bearer {self.key}".encode()  # servers read UTF-8
        with self._counting:
            self.requests += 1
        connection = self._connection(until)
        try:
            connection.request(method, urlsplit(self.url).path + path, data, headers)
            # a response without a length has taken the connection over, and closes it
            with connection.getresponse() as response:
                yield response
        except TimeoutError:
            _check_time(until)
            raise UnreachableError(f"{self.url} said nothing for {self.silence:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(f"{self.url} cannot be used: {error or type(error).__name__}") from error
        finally:
            connection.close()

    def _send(self, method: str, path: str, data: bytes | None) -> Reply:
        with self._response(method, path, data, self.until) as response:
            return Reply(response.status, decoded(self._body(response, self.until)))

    def _body(self, response: http.client.HTTPResponse, until: float) -> bytes:
        """The whole body of an answer."""
        return b"".join(self._pieces(response, until, MOST_BODY))

    def _pieces(self, response: http.client.HTTPResponse, until: float, most: float = math.inf) -> Iterator[bytes]:
        """A body as it comes. Where it never ends, it is cut at the time `until`, or after `most` bytes."""
        read = 0
        while data := response.read1(READ_BYTES):
            _check_time(until)
            read += len(data)
            if read > most:
                raise UnreachableError(f"{self.url} answers with more than {most:,} bytes")
            yield data
        if response.length:  # of the bytes that were promised
            raise http.client.IncompleteRead(b"", response.length)


def _check_time(until: float) -> None:
    if time.monotonic() > until:
        raise TimeUp


def _has_port(parts: SplitResult) -> bool:
    """Whether the port of a URL is a number in range, or left out."""
    try:
        return parts.port != 0
    except ValueError:
        return False


def error_text(value: Any) -> str:
    """The message of an error body in any of the forms in use; the beginning of anything else."""
    if isinstance(value, dict):
        error = value.get("error", value)
        message = error.get("message", error.get("detail")) if isinstance(error, dict) else error
        if message is not None:
            return str(message)[:300]
    return (value if isinstance(value, str) else json.dumps(value))[:300]


def decoded(data: bytes) -> Any:
    """The JSON of a body; its text where it is none."""
    text = data.decode("utf-8", errors="replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _events(pieces: Iterator[bytes]) -> Iterator[str]:
    """The data of each event; comments and other fields of the format are left out. Raises UnreachableError for a line
    without an end."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from _data(lines)
        if len(rest) > MOST_BODY:
            raise UnreachableError(f"the endpoint streams a line of more than {MOST_BODY:,} bytes")
    yield from _data([rest])


def _data(lines: list[bytes]) -> Iterator[str]:
    for line in lines:
        text = line.decode("utf-8", errors="replace").rstrip("\r")
        if text.startswith("data:"):
            yield text[5:].strip()
