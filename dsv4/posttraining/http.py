"""A `TokenGenerator` over a server: text completions with token ids in and out (`return_token_ids`), by HTTP.

Standard library only, so a rollout worker needs nothing but this package. Traces do not travel: a server tells tokens
and log-probabilities.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from dsv4.generation import (
    BusyError,
    ContextLengthError,
    FinishReason,
    RequestOptions,
    SamplingParams,
    TokenEvent,
    TokenLogprobs,
)

_LONGEST_LINE = 2**20  # bytes of one event


class ServerLostError(ConnectionError):
    """The server could not be reached, died in the middle of an answer, or said what is not understood. What it has
    said until then is right, and can be continued elsewhere."""


@dataclass(frozen=True, slots=True)
class HttpGenerator:
    """url: of the server, up to and without `/v1`. begin, end: ids of the tokens that begin every prompt and end an
    answer; the server adds the first itself. context_length: of its model. model: its name, None = whatever it serves.
    key: of the client. silence: seconds without a byte after which the server counts as lost."""

    url: str
    begin: int
    end: int
    context_length: int
    model: str | None = None
    key: str | None = None
    silence: float = 60.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url must be http://host:port or https://host:port, got {self.url!r}")

    async def stream(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> AsyncGenerator[TokenEvent, None]:
        """As in TokenGenerator. Raises ServerLostError too. Closing it closes the connection, which stops the work."""
        body = self._body(prompt, params, options or RequestOptions())
        last: TokenEvent | None = None
        # NOTE: read to the end: a server counts an answer whose client leaves early as aborted
        async with aclosing(self._events(body)) as chunks:
            async for chunk in chunks:
                if "error" in chunk:
                    last = TokenEvent(None, FinishReason.ERROR, error=str(chunk["error"].get("message")))
                    break
                for event in _read(chunk["choices"][0]):
                    if event.token == self.end and self.end in params.stop_ids:
                        last = replace(event, finish=FinishReason.STOP)
                    elif event.finish is not None:
                        last = last or event
                    else:
                        yield event
        if last is None:
            raise ServerLostError(f"{self.url} ended an answer without a reason")
        yield last

    def _body(self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions) -> dict[str, Any]:
        if not prompt or prompt[0] != self.begin:
            raise ValueError(f"prompts of this server begin with token {self.begin}, got {list(prompt[:1])}")
        for name, unsupported in (
            ("trace", params.trace),
            ("constraint", params.constraint is not None),
            ("stop_ids", not set(params.stop_ids) <= {self.end}),
            ("deadline", options.deadline is not None),
            ("priority", options.priority != 0),
        ):
            if unsupported:
                raise ValueError(f"{name}: cannot be asked of a server")
        fields = {name: getattr(params, name) for name in _FIELDS}
        return {
            "prompt": list(prompt[1:]),
            "stream": True,
            "return_token_ids": True,
            "logprobs": params.top_logprobs if params.logprobs else None,
            "logit_bias": {str(token): value for token, value in params.logit_bias} or None,
            "user": options.owner or None,
            "model": self.model,
            **fields,
        }

    async def _events(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of an answer. Raises what the status says."""
        reader, writer = await self._lost(self._send(json.dumps(body).encode()), "cannot be reached")
        try:
            status, chunked = await self._lost(_head(reader), "answered what is not HTTP")
            lines = _Lines(reader, chunked)
            if status != 200:
                text = b"".join([line async for line in _all(lines, self._lost)])
                raise self._refusal(status, text, len(body["prompt"]) + 1)
            while (line := await self._lost(lines.next(), "died in the middle of an answer")) is not None:
                if line.startswith(b"data: ") and line != b"data: [DONE]":
                    yield json.loads(line[6:])
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _send(self, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        parts = urlsplit(self.url)
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        reader, writer = await asyncio.open_connection(
            parts.hostname, port, ssl=True if secure else None, limit=_LONGEST_LINE
        )
        lines = [
            f"POST {parts.path.rstrip('/')}/v1/completions HTTP/1.1",
            f"host: {parts.netloc}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
            *([f"authorization: Bearer {self.key}"] if self.key else []),
        ]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()
        return reader, writer

    async def _lost(self, work: Any, what: str) -> Any:
        """`work`, whose failure means that the server is lost."""
        try:
            return await asyncio.wait_for(work, self.silence)
        except TimeoutError:
            raise ServerLostError(f"{self.url} said nothing for {self.silence:g} s") from None
        except (OSError, EOFError, ValueError) as error:
            raise ServerLostError(f"{self.url} {what} ({error})") from error

    def _refusal(self, status: int, text: bytes, prompt: int) -> Exception:
        try:
            error = json.loads(text)["error"]
            message, code = str(error["message"]), error.get("code")
        except (ValueError, KeyError, TypeError):
            message, code = text[:200].decode(errors="replace"), None
        if status == 400 and code == "context_length_exceeded":
            return ContextLengthError(prompt, self.context_length)
        if status == 429:
            return BusyError(0)
        if status in (400, 401, 403, 404, 413, 422):
            return ValueError(f"{self.url} refuses: {message}")
        return ServerLostError(f"{self.url} answers {status}: {message}")


_FIELDS = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "seed")


def _read(choice: dict[str, Any]) -> list[TokenEvent]:
    """The events of one chunk; the end of the answer comes as an event of its own."""
    ids, scores = choice.get("token_ids"), choice.get("logprobs") or {}
    if ids is None:
        raise ServerLostError("the server gives no token ids: it does not know return_token_ids")
    values = scores.get("token_logprobs") or [None] * len(ids)
    events = [
        TokenEvent(token, logprobs=None if value is None else TokenLogprobs(value))
        for token, value in zip(ids, values, strict=True)
    ]
    match choice.get("finish_reason"):
        case None:
            pass
        case "stop":
            events.append(TokenEvent(None, FinishReason.STOP))
        case "length":
            events.append(TokenEvent(None, FinishReason.LENGTH))
        case other:
            events.append(TokenEvent(None, FinishReason.ABORT, error=f"the server ended the answer: {other}"))
    return events


async def _head(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Status, and whether the body comes in chunks."""
    version, status, *_ = (await reader.readuntil(b"\r\n")).split(b" ", 2)
    if not version.startswith(b"HTTP/1."):
        raise ValueError(f"unexpected {version[:20]!r}")
    chunked = False
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        name, _, value = line.lower().partition(b":")
        chunked = chunked or (name == b"transfer-encoding" and b"chunked" in value)
    return int(status), chunked


class _Lines:
    """The lines of a body, whole or in chunks."""

    def __init__(self, reader: asyncio.StreamReader, chunked: bool) -> None:
        self._reader, self._chunked, self._buffer, self._over = reader, chunked, b"", False

    async def next(self) -> bytes | None:
        """The next line without its end; None behind the last. Raises EOFError where the body is cut off."""
        while b"\n" not in self._buffer and not self._over:
            self._buffer += await (self._chunk() if self._chunked else self._rest())
            if len(self._buffer) > _LONGEST_LINE:
                raise ValueError("a line is too long")
        line, found, self._buffer = self._buffer.partition(b"\n")
        return line.rstrip(b"\r") if found or line else None

    async def _chunk(self) -> bytes:
        size = int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16)
        data = await self._reader.readexactly(size + 2)
        self._over = size == 0
        return data[:-2]

    async def _rest(self) -> bytes:
        data = await self._reader.read(65_536)
        self._over = not data
        return data


async def _all(lines: _Lines, guarded: Any) -> AsyncGenerator[bytes, None]:
    while (line := await guarded(lines.next(), "died in the middle of a refusal")) is not None:
        yield line
