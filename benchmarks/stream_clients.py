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
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


async def ask(url: str, body: bytes) -> dict[str, Any]:
    """One streamed answer of chat or text completions."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    head = f"POST {address.path} HTTP/1.1\r\nhost: {address.netloc}\r\nconnection: close\r\ncontent-length: {len(body)}"
    writer.write(head.encode() + b"\r\n\r\n" + body)
    text, times, usage, done = [], [], None, False
    sent = now = time.monotonic()
    try:
        async for line in reader:
            if not line.startswith(b"data: "):
                continue
            now = time.monotonic()
            if line.startswith(b"data: [DONE]"):
                done = True
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
    finally:
        writer.close()
    if not done or usage is None:
        raise RuntimeError("the stream broke off")
    return {"text": "".join(text), "times": times, "tokens": usage["completion_tokens"], "sent": sent, "ended": now}


async def client(url: str, request: str, stream: int, until: float, rounds: int) -> list[dict[str, Any]]:
    """Answers one after another until the time or the number is reached."""
    answers: list[dict[str, Any]] = []
    while time.monotonic() < until and len(answers) < rounds:
        name = f"{stream} {len(answers)}"
        body = request.replace("{stream}", str(stream)).replace("{round}", str(len(answers)))
        answers.append({"name": name, **await ask(url, body.encode())})
    return answers


async def main(url: str, requests: list[str], streams: int, seconds: float, rounds: int) -> None:
    until = time.monotonic() + seconds
    found = await asyncio.gather(
        *(client(url, requests[index % len(requests)], index, until, rounds) for index in range(streams))
    )
    print(json.dumps([answer for answers in found for answer in answers]))


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
