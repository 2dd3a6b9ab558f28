"""What `dsv4 serve --engine` costs: the same stream from a stub engine, bare and through the server, in turns.

    python benchmarks/front.py --tokens 100 --streams 8 --delay 0.02 --rounds 5

The stub speaks vLLM's protocol and waits `delay` seconds before each token. Printed for each round: tokens/s of all
streams and the median time to the first token, bare and through; at the end the medians, their spread, and the CPU time
of the server for a token, which other programs on the machine change less.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import uvicorn

from dsv4.api.folders import default_model_folder
from dsv4.backends.http import HttpClient
from dsv4.encoding import Tokenizer
from dsv4.testing.engine_server import EngineServer
from dsv4.testing.stub import StubGenerator
from dsv4.verify.own_server import own_server

TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def stub_engine(tokenizer: Tokenizer, delay: float) -> Iterator[str]:
    """The address of the stub, which runs in a thread of this process."""
    stub = StubGenerator(lambda prompt, params: [100] * 100_000, context_length=100_000, delay=delay)
    server = EngineServer(stub, "vllm", tokenize=tokenizer.encode_text)
    running = uvicorn.Server(uvicorn.Config(server.app(), port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join()


async def stream(client: HttpClient, path: str, body: bytes) -> float:
    """Read one answer to its end; the time to its first token."""
    began, first = time.perf_counter(), 0.0
    async with client.request("POST", path, body) as response, aclosing(response.lines()) as lines:
        async for line in lines:
            if line.startswith(b"data: ") and not first and (b'"content":"' in line or b'"token_ids"' in line):
                first = time.perf_counter() - began
    return first


async def measure(url: str, path: str, body: bytes, streams: int, tokens: int) -> tuple[float, float]:
    """Tokens/s of `streams` answers at once, and their median time to the first token."""
    client, began = HttpClient(url, silence=600), time.perf_counter()
    firsts = await asyncio.gather(*(stream(client, path, body) for _ in range(streams)))
    client.close()
    return streams * tokens / (time.perf_counter() - began), statistics.median(firsts)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def child_of_this(name: str) -> int:
    """The process of `dsv4 serve`."""
    found = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", name], capture_output=True, text=True, check=True)
    return int(found.stdout.split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, value in (("tokens", 100), ("streams", 8), ("delay", 0.02), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=type(value), default=value)
    args = parser.parse_args()
    folder = default_model_folder()
    tokenizer = Tokenizer.load(folder)
    bare = {
        "model": "deepseek-v4", "prompt": list(range(50, 80)), "stream": True, "return_token_ids": True,
        "stream_options": {"include_usage": True}, "max_tokens": args.tokens, "temperature": 1.0, "top_p": 1.0,
        "top_k": 0, "min_p": 0, "presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1.0,
        "ignore_eos": True, "stop_token_ids": [1],
    }  # fmt: skip
    chat = {
        "model": "nano", "messages": [{"role": "user", "content": "Tell me a story about two rivers."}],
        "thinking": {"type": "disabled"}, "stream": True, "max_tokens": args.tokens,
    }  # fmt: skip
    rows: list[tuple[float, ...]] = []
    with (
        stub_engine(tokenizer, args.delay) as engine,
        tempfile.TemporaryDirectory() as empty,
        own_server(folder, ["--engine", engine, "--history", empty]) as front,
    ):
        server = child_of_this("dsv4.cli serve")
        sides = ((engine, "/v1/completions", bare), (front, "/v1/chat/completions", chat))
        for round_ in range(args.rounds + 1):
            before, found = cpu_seconds(server), []
            for url, path, body in sides if round_ % 2 else sides[::-1]:
                encoded = json.dumps(body).encode()
                found.append(asyncio.run(measure(url, path, encoded, args.streams, args.tokens)))
            (rate, first), (rate_through, first_through) = found if round_ % 2 else found[::-1]
            cpu = (cpu_seconds(server) - before) / (args.streams * args.tokens)
            if round_:  # the first one warms both
                rows.append((rate_through / rate, first_through - first, cpu))
                print(
                    f"bare {rate:8.1f} tok/s {1e3 * first:7.1f} ms   through {rate_through:8.1f} tok/s "
                    f"{1e3 * first_through:7.1f} ms   server {1e6 * cpu:6.0f} us CPU a token"
                )
    for name, place, scale, unit in (("tokens/s", 0, 1, "x"), ("first token", 1, 1e3, "ms"), ("CPU", 2, 1e6, "us")):
        values = sorted(scale * row[place] for row in rows)
        print(f"{name}: {statistics.median(values):.3f} {unit} [{values[0]:.3f} - {values[-1]:.3f}]", file=sys.stdout)


if __name__ == "__main__":
    main()
