"""HTTP/1.1 for clients of token servers: JSON goes out, lines come back. Standard library only."""

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit

MOST_LINE = 2**20  # bytes of a line of a header
# bytes of a body that is read as a whole, and of a line of one that is streamed: vLLM's first chunk repeats the
# prompt's ids, 7 MiB of them at a context of 1M tokens
MOST_BODY = 2**24
READ_BYTES = 2**16
CONNECT_SECONDS = 10.0
MOST_IDLE = 256  # connections that wait for the next request
T = TypeVar("T")
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class ServerLostError(ConnectionError):
    """The server could not be reached, died in the middle of an answer, or said what is not understood. What it has
    said until then is right, and can be continued elsewhere."""


def split_url(url: str, name: str = "url") -> SplitResult:
    """The parts of a server's address. Raises ValueError naming `name`."""
    parts = urlsplit(url)
    try:
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        usable = False
    if "@" in parts.netloc:
        # not repeated: it holds a password
        raise ValueError(f"{name} must be http://host:port, without a user or a password before the host")
    if not usable or parts.query or parts.fragment or " " in url or not url.isprintable():
        raise ValueError(f"{name} must be http://host:port or https://host:port, got {url!r}")
    return parts


class HttpResponse:
    """One answer of a server: its status, then its body. The body is read as it is wanted, so a slow reader slows the
    server down."""

    def __init__(
        self, client: "HttpClient", reader: asyncio.StreamReader, status: int, headers: dict[str, str]
    ) -> None:
        self.status, self._client, self._reader = status, client, reader
        self._chunks = _Chunks() if "chunked" in headers.get("transfer-encoding", "") else None
        length = headers.get("content-length")
        self._left = int(length) if length is not None and self._chunks is None else None
        self._over = self._left == 0
        self._keep = headers.get("connection", "").lower() != "close"

    @property
    def reusable(self) -> bool:
        """Whether the body was read to its end and the connection stays open."""
        return self._over and self._keep and (self._chunks is not None or self._left is not None)

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """The lines of the body without their ends. Raises ServerLostError."""
        rest = bytearray()
        async for data in self._pieces("died in the middle of an answer"):
            rest += data
            if b"\n" in data:
                *whole, last = bytes(rest).split(b"\n")
                rest = bytearray(last)
                for line in whole:
                    yield line.rstrip(b"\r")
            if len(rest) > MOST_BODY:
                raise ServerLostError(f"{self._client.url} sent a line of more than {MOST_BODY:,} bytes")
        if rest:
            yield bytes(rest)

    async def body(self) -> bytes:
        """The whole body. Raises ServerLostError."""
        found = bytearray()
        async for data in self._pieces("died in the middle of its answer"):
            found += data
            if len(found) > MOST_BODY:
                raise ServerLostError(f"{self._client.url} answered with more than {MOST_BODY:,} bytes")
        return bytes(found)

    async def _pieces(self, failed: str) -> AsyncGenerator[bytes, None]:
        while not self._over:
            yield await self._client.guarded(self._piece(), failed)

    async def _piece(self) -> bytes:
        data = await self._reader.read(READ_BYTES)
        if self._chunks is not None:
            if not data:
                raise EOFError("the connection was closed")
            data = self._chunks.feed(data)
            self._over = self._chunks.over
        elif self._left is not None:
            if not data:
                raise EOFError("the connection was closed")
            data = data[: self._left]
            self._left -= len(data)
            self._over = self._left == 0
        else:
            self._over = not data
        return data


class _Chunks:
    """The decoder of a body in chunks."""

    def __init__(self) -> None:
        self._rest, self._left, self.over = bytearray(), 0, False

    def feed(self, data: bytes) -> bytes:
        """What the bytes hold of the body. Raises ValueError for what is no such body."""
        self._rest += data
        found = bytearray()
        while not self.over:
            if self._left > 2:
                taken = self._rest[: self._left - 2]
                found += taken
                del self._rest[: len(taken)]
                self._left -= len(taken)
            if self._left:  # the line end behind a chunk
                if len(self._rest) < self._left or self._left > 2:
                    break
                del self._rest[: self._left]
                self._left = 0
            line, end, _ = self._rest.partition(b"\r\n")
            if not end:
                if len(line) > MOST_LINE:
                    raise ValueError("the size of a chunk is too long")
                break
            size = int(line.split(b";")[0], 16)
            if size < 0:
                raise ValueError("the size of a chunk is negative")
            if size == 0:
                # NOTE: the empty line behind the last chunk may still come; a trailer is not expected of these servers
                if len(self._rest) < len(line) + 4:
                    break
                self.over = True
            del self._rest[: len(line) + 2]
            self._left = size + 2
        return bytes(found)


def check_key(key: str | None) -> None:
    """Raise ValueError for a key with a line end, which would end its header. The message does not show it."""
    if key is not None and not key.isprintable():
        raise ValueError("key must be printable, without line ends")


@dataclass(slots=True)
class HttpClient:
    """Requests to one server. url: up to and without `/v1`. key: of the client, sent as a bearer token. silence:
    seconds without a byte after which the server counts as lost. keep: whether connections are used again.

    Use it in one event loop at a time; connections of an earlier loop are dropped. Raises ValueError for url and key.
    """

    url: str
    key: str | None = None
    silence: float = 60.0
    keep: bool = True
    _idle: deque[Streams] = field(default_factory=deque, init=False, repr=False)
    _loop: asyncio.AbstractEventLoop | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        split_url(self.url)
        check_key(self.key)

    @asynccontextmanager
    async def request(self, method: str, path: str, body: bytes | None = None) -> AsyncIterator[HttpResponse]:
        """Send one request; leaving the block before the body is over closes the connection, which stops the server's
        work. Raises ServerLostError."""
        response, streams = await self._answered(method, path, body)
        try:
            yield response
        finally:
            if self.keep and response.reusable and len(self._idle) < MOST_IDLE:
                self._idle.append(streams)
            else:
                # not waited for: with TLS a server that is gone would not answer the end
                streams[1].close()

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a GET. Raises ServerLostError."""
        async with self.request("GET", path) as response:
            return response.status, await response.body()

    async def guarded(self, work: Awaitable[T], failed: str) -> T:
        """The result of `work`, whose failure means that the server is lost."""
        try:
            async with asyncio.timeout(self.silence):
                return await work
        except TimeoutError:
            raise ServerLostError(f"{self.url} said nothing for {self.silence:g} s") from None
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            raise ServerLostError(f"{self.url} {failed} ({error})") from error

    def close(self) -> None:
        """Close the idle connections; those of a loop that has ended are only dropped."""
        usable = self._loop is not None and self._loop.is_running()
        while self._idle:
            writer = self._idle.popleft()[1]
            if usable:
                writer.close()

    async def _answered(self, method: str, path: str, body: bytes | None) -> tuple[HttpResponse, Streams]:
        """The head of the answer. An idle connection that the server has closed meanwhile is replaced."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._idle, self._loop = deque(), loop
        while self._idle:
            streams = self._idle.pop()
            if streams[0].at_eof() or streams[1].is_closing():
                streams[1].close()
                continue
            try:
                return await self._exchange(streams, method, path, body)
            except ServerLostError as error:
                if isinstance(error.__cause__, OSError | EOFError):  # closed while the request was on its way
                    continue
                raise
        streams = await self.guarded(self._connect(), "cannot be reached")
        return await self._exchange(streams, method, path, body)

    async def _exchange(
        self, streams: Streams, method: str, path: str, body: bytes | None
    ) -> tuple[HttpResponse, Streams]:
        reader, writer = streams
        try:
            await self.guarded(self._send(writer, method, path, body), "cannot be reached")
            status, headers = await self.guarded(_head(reader), "answered what is not HTTP")
            return HttpResponse(self, reader, status, headers), streams
        except BaseException:
            writer.close()
            raise

    async def _connect(self) -> Streams:
        parts = urlsplit(self.url)
        secure = ssl.create_default_context() if parts.scheme == "https" else None
        port = parts.port or (443 if secure else 80)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await asyncio.open_connection(parts.hostname, port, ssl=secure, limit=MOST_LINE)
        except TimeoutError:
            raise ConnectionError(f"no connection within {CONNECT_SECONDS:g} s") from None

    async def _send(self, writer: asyncio.StreamWriter, method: str, path: str, body: bytes | None) -> None:
        parts = urlsplit(self.url)
        lines = [
            f"{method} {parts.path.rstrip('/')}{path} HTTP/1.1",
            f"host: {parts.netloc}",
            f"connection: {'keep-alive' if self.keep else 'close'}",
            *([f"authorization: Bearer {self.key}"] if self.key else []),
            *(["content-type: application/json", f"content-length: {len(body)}"] if body is not None else []),
        ]
        writer.write("\r\n".join([*lines, "", ""]).encode() + (body or b""))
        await writer.drain()


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer, names in lower case."""
    version, status, *_ = (await reader.readuntil(b"\r\n")).split(b" ", 2)
    if not version.startswith(b"HTTP/1."):
        raise ValueError(f"unexpected {version[:20]!r}")
    headers: dict[str, str] = {}
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    if version == b"HTTP/1.0":
        headers.setdefault("connection", "close")
    if (length := headers.get("content-length", "0")) and not (length.isascii() and length.isdigit()):
        raise ValueError(f"content-length {length[:20]!r}")
    return int(status), headers
