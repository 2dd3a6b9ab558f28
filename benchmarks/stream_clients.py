"""Many streaming clients at once, in a process of their own, so that they do not share the server's interpreter.

    python -m benchmarks.stream_clients URL REQUEST.json... --streams 64 --seconds 60

Standard library only. Client n takes file n (they are used in turn) and sends its request again as soon as its answer
is over; `{stream}` and `{round}` in it become numbers. Prints one JSON list: per answer its name, text, completion
tokens, when it was sent, when each piece arrived and when it ended, in seconds of the machine's monotonic clock, which
the server can compare with its own.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


class Receiver(asyncio.Protocol):
    """One connection: keeps what arrives, and when. Nothing is parsed before the end, because server and clients share
    the machine."""

    def __init__(self) -> None:
        self.parts: list[tuple[float, bytes]] = []
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.parts.append((time.monotonic(), data))

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(None)


@dataclass(frozen=True, slots=True)
class Raw:
    """An answer as it came. sent: when its request was."""

    name: str
    sent: float
    parts: list[tuple[float, bytes]]


async def ask(url: str, name: str, body: bytes) -> Raw:
    """One streamed answer of chat or text completions."""
    address = urlsplit(url)
    transport, receiver = await asyncio.get_running_loop().create_connection(Receiver, address.hostname, address.port)
    head = f"POST {address.path} HTTP/1.1\r\nhost: {address.netloc}\r\nconnection: close\r\ncontent-length: {len(body)}"
    sent = time.monotonic()
    transport.write(head.encode() + b"\r\n\r\n" + body)
    await receiver.closed
    return Raw(name, sent, receiver.parts)


def lines(parts: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """The lines of a body, each with the time at which its end came."""
    rest = b""
    for now, part in parts:
        *whole, rest = (rest + part).split(b"\n")
        yield from ((now, line) for line in whole)


def parsed(answer: Raw) -> dict[str, Any]:
    """Text, tokens and times of an answer. Raises RuntimeError for one with an error or without an end."""
    text: list[str] = []
    times: list[float] = []
    usage, ended = None, None
    for now, line in lines(answer.parts):
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            ended = now
            break
        chunk = json.loads(line[6:])
        if "error" in chunk:
            raise RuntimeError(chunk["error"]["message"])
        for choice in chunk["choices"]:
            piece = choice["text"] if "text" in choice else choice["delta"].get("content")
            if piece:
                text.append(piece)
                times.append(now)
        usage = chunk.get("usage") or usage
    if ended is None or usage is None:
        raise RuntimeError(f"the stream broke off: {b''.join(part for _, part in answer.parts)[:300]!r}")
    told = {"text": "".join(text), "times": times, "tokens": usage["completion_tokens"]}
    return {"name": answer.name, **told, "sent": answer.sent, "ended": ended}


async def client(url: str, request: str, stream: int, until: float, rounds: int) -> list[Raw]:
    """Answers one after another until the time or the number is reached."""
    answers: list[Raw] = []
    while time.monotonic() < until and len(answers) < rounds:
        name = f"{stream} {len(answers)}"
        body = request.replace("{stream}", str(stream)).replace("{round}", str(len(answers)))
        answers.append(await ask(url, name, body.encode()))
    return answers


async def main(url: str, requests: list[str], streams: int, seconds: float, rounds: int) -> None:
    until = time.monotonic() + seconds
    found = await asyncio.gather(
        *(client(url, requests[index % len(requests)], index, until, rounds) for index in range(streams))
    )
    print(json.dumps([parsed(answer) for answers in found for answer in answers]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("requests", type=Path, nargs="+")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=1_000_000)
    given = parser.parse_args()
    texts = [file.read_text() for file in given.requests]
    asyncio.run(main(given.url, texts, given.streams, given.seconds, given.rounds))
