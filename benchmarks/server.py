"""What the HTTP server costs: time per token through it against that of the engine alone, in one run.

    .venv/bin/python benchmarks/server.py [FOLDER] [--streams 1 8] [--tokens 256] [--json benchmarks/results.jsonl]

FOLDER: a checkpoint, default models/nano. The engine runs alone, then behind its service (a thread, events in an
asyncio loop), then behind the server with clients in a process of their own. All decode the same prompts with the same
settings, several times in turns; medians are compared, as wall-clock time and as CPU time of this process, of which
the thread of the server's event loop is shown too. Prefill is part of each. A second table has the time between two
tokens of one stream: 99 of 100 are not longer (for the engine alone the time of its steps). Wall-clock time means
something only while the machine does nothing else. Nothing here is judged.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import uvicorn

from dsv4.api.loading import load
from dsv4.api.local_model import LocalModel
from dsv4.bench.results import append_lines
from dsv4.bench.speed import random_prompt
from dsv4.cli.serve import SWITCH_SECONDS
from dsv4.config import ModeChoice
from dsv4.generation import SamplingParams
from dsv4.server import create_app
from dsv4.server.guard.connection import HeaderClock
from dsv4.workload.timing import percentile

ROOT = Path(__file__).resolve().parents[1]
PROMPT_TOKENS = 256
AIM, AIM_OF_MID = 15.0, 1.0  # % of a token's time
AIM_LATE = 3.0  # milliseconds, at 64 streams


def prompts(model: LocalModel, streams: int) -> list[list[int]]:
    """Ids that have a text: a server refuses those above, with which a vocabulary was padded."""
    known = min(model.config.vocab_size, model.tokenizer.vocab_size)
    return [random_prompt(known, PROMPT_TOKENS, seed) for seed in range(streams)]


def params(model: LocalModel, tokens: int) -> SamplingParams:
    """Greedy, and never the end token, so that every answer is `tokens` long."""
    ends = ((model.tokenizer.eos_id, -100.0),)
    return SamplingParams(max_tokens=tokens, temperature=0, logit_bias=ends)


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds: wall-clock, CPU of this process, CPU of the event loop's thread, and those between two tokens of a
    stream."""

    wall: float
    cpu: float
    loop: float
    gaps: list[float]


def measured(run: Callable[..., tuple[float, list[float]]], *arguments: object, loop: int | None = None) -> Cost:
    """What `run(*arguments)` costs, which gives its wall-clock time and its gaps; loop: the clock of a thread."""
    cpu, thread = time.process_time(), 0.0 if loop is None else time.clock_gettime(loop)
    wall, gaps = run(*arguments)
    thread = 0.0 if loop is None else time.clock_gettime(loop) - thread
    return Cost(wall, time.process_time() - cpu, thread, gaps)


def alone(model: LocalModel, streams: int, tokens: int) -> tuple[float, list[float]]:
    """All answers, the engine called in this thread. The gaps are those of steps in which all streams decode."""
    model.engine.forget()
    began = time.perf_counter()
    requests = [model.engine.submit(prompt, params(model, tokens)) for prompt in prompts(model, streams)]
    gaps = []
    while model.engine.busy:
        step = time.perf_counter()
        decoding = all(request.generated for request in requests)
        model.engine.step()
        if decoding:
            gaps.append(time.perf_counter() - step)
    return time.perf_counter() - began, gaps


def gaps_of(streams: Iterable[Sequence[float]]) -> list[float]:
    """The times between the tokens of each stream, from the moment when all streams have one."""
    times = list(streams)
    begun = max(stream[0] for stream in times)
    return [after - before for stream in times for before, after in pairwise(stream) if before >= begun]


def behind_service(model: LocalModel, streams: int, tokens: int) -> tuple[float, list[float]]:
    """All answers as streams of the service."""
    model.engine.forget()

    async def one(prompt: list[int]) -> list[float]:
        return [time.perf_counter() async for _ in model.service.stream(prompt, params(model, tokens))]

    async def every() -> list[list[float]]:
        return await asyncio.gather(*(one(prompt) for prompt in prompts(model, streams)))

    began = time.perf_counter()
    times = asyncio.run(every())
    return time.perf_counter() - began, gaps_of(times)


def served(model: LocalModel, streams: int, tokens: int, url: str, folder: Path) -> tuple[float, list[float]]:
    """All answers over HTTP; seconds from the first client's request to the last client's end."""
    model.engine.forget()
    request = {"stream": True, "max_tokens": tokens, "temperature": 0}
    request["logit_bias"] = {str(model.tokenizer.eos_id): -100}
    files = []
    for index, prompt in enumerate(prompts(model, streams)):
        files.append(folder / f"{index}.json")
        files[-1].write_text(json.dumps({**request, "prompt": [prompt]}))
    command = [sys.executable, "-m", "benchmarks.stream_clients", f"{url}/v1/completions", *map(str, files)]
    flags = [f"--streams={streams}", "--rounds=1"]
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, check=True)
    answers = json.loads(done.stdout)
    assert [answer["tokens"] for answer in answers] == [tokens] * streams
    wall = max(answer["ended"] for answer in answers) - min(answer["sent"] for answer in answers)
    return wall, gaps_of(answer["times"] for answer in answers)


class Served:
    """The model behind the server, in a thread of its own, while the block runs."""

    def __init__(self, model: LocalModel) -> None:
        app = create_app(model.service, model.tokenizer, model_name=model.name, defaults=model.defaults)
        # connections as those of `dsv4 serve`
        config = uvicorn.Config(app, port=0, log_level="warning", access_log=False, http=HeaderClock, ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve()))

    @property
    def clock(self) -> int:
        """Of the processor time of the event loop's thread, for `time.clock_gettime`."""
        assert self._thread.ident is not None
        return time.pthread_getcpuclockid(self._thread.ident)

    def __enter__(self) -> str:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def __exit__(self, *error: object) -> None:
        self._server.should_exit = True
        self._thread.join()


def compare(
    folder: Path, mode: ModeChoice, streams: int, tokens: int, repeats: int
) -> tuple[list[Cost], list[Cost], list[Cost]]:
    """The costs of engine, service and server, measured in turns so that all see the same machine."""
    own: list[Cost] = []
    service: list[Cost] = []
    http: list[Cost] = []
    for _ in range(repeats):
        # anew, since a service keeps its engine
        model = load(folder, mode, context_length=2048, draft="none", sequences=max(8, streams))
        alone(model, streams, 8)
        own.append(measured(alone, model, streams, tokens))
        behind_service(model, streams, 8)
        service.append(measured(behind_service, model, streams, tokens))
        server = Served(model)
        with server as url, tempfile.TemporaryDirectory() as place:
            served(model, streams, 8, url, Path(place))
            http.append(measured(served, model, streams, tokens, url, Path(place), loop=server.clock))
        model.service.close()
    return own, service, http


@dataclass(frozen=True, slots=True)
class Row:
    """What a number of streams cost: medians of engine, service and server, in microseconds of a token; p99 of the time
    between two tokens in milliseconds."""

    streams: int
    wall: list[float]
    cpu: list[float]
    loop: float
    late: list[float]

    @classmethod
    def of(cls, streams: int, tokens: int, ways: Sequence[Sequence[Cost]]) -> "Row":
        """tokens: of each stream."""
        scale = 1e6 / (streams * tokens)
        return cls(
            streams,
            [scale * statistics.median(cost.wall for cost in way) for way in ways],
            [scale * statistics.median(cost.cpu for cost in way) for way in ways],
            scale * statistics.median(cost.loop for cost in ways[-1]),
            [1e3 * statistics.median(percentile(cost.gaps, 99) for cost in way) for way in ways],
        )

    def costs(self) -> str:
        """A line of the first table."""
        shown = "".join(f"{a:>10.0f} ({b:5.0f})" for a, b in zip(self.wall, self.cpu, strict=True))
        service, served = (100 * (way / self.wall[0] - 1) for way in self.wall[1:])
        return f"{self.streams:>8}{shown}{self.loop:>12.0f}{service:>+10.1f}%{served:>+8.1f}%"

    def gaps(self) -> str:
        """A line of the second table."""
        shown = "".join(f"{value:>18.2f}" for value in self.late)
        return f"{self.streams:>8}{shown}{self.late[2] - self.late[0]:>+12.2f}"

    def fields(self) -> dict[str, object]:
        """For the file of results."""
        names = ("engine", "service", "served")
        ways = {f"{name}_us": [a, b] for name, a, b in zip(names, self.wall, self.cpu, strict=True)}
        return {"streams": self.streams, **ways, "loop_us": self.loop, "p99_ms": self.late}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "models" / "nano")
    parser.add_argument("--mode", choices=("fp32", "release"), default="fp32")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sys.setswitchinterval(SWITCH_SECONDS)
    head = f"{'streams':>8}{'engine':>18}{'service':>18}{'served':>18}"
    print(f"microseconds per token, wall-clock (CPU); the aim is served <= engine + {AIM:g} % (mid: {AIM_OF_MID:g} %)")
    print(f"{head}{'of it loop':>12}{'service':>11}{'served':>9}")
    rows = []
    for streams in given.streams:
        ways = compare(given.folder, given.mode, streams, given.tokens, given.repeats)
        rows.append(Row.of(streams, given.tokens, ways))
        print(rows[-1].costs(), flush=True)
    print(f"milliseconds between two tokens of a stream, p99; the aim is served <= engine + {AIM_LATE:g}")
    print("\n".join([f"{head}{'more':>12}", *(row.gaps() for row in rows)]))
    if given.json:
        known = {"benchmark": "server", "model": given.folder.name, "mode": given.mode}
        append_lines(given.json, [{**known, **row.fields()} for row in rows])


if __name__ == "__main__":
    main()
