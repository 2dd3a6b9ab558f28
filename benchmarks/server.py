"""What the HTTP server costs: time per token through it against that of the engine alone, in one run.

    .venv/bin/python benchmarks/server.py [FOLDER] [--tokens 256] [--json benchmarks/results.jsonl]

FOLDER: a checkpoint, default models/nano. The engine runs alone, then behind its service (a thread, events in an
asyncio loop), then behind the server with clients in a process of their own. All decode the same prompts with the same
settings, several times in turns; medians are compared, as wall-clock time and as CPU time of this process. Prefill is
part of each. Wall-clock time means something only while the machine does nothing else. Nothing here is judged.
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from dsv4.api.loading import load
from dsv4.api.local_model import LocalModel
from dsv4.bench.results import append_lines
from dsv4.bench.speed import random_prompt
from dsv4.cli.serve import SWITCH_SECONDS
from dsv4.generation import SamplingParams
from dsv4.server import create_app
from dsv4.server.guard.connection import HeaderClock

ROOT = Path(__file__).resolve().parents[1]
PROMPT_TOKENS = 256
AIM = 5.0


def prompts(model: LocalModel, streams: int) -> list[list[int]]:
    return [random_prompt(model.config.vocab_size, PROMPT_TOKENS, seed) for seed in range(streams)]


def params(model: LocalModel, tokens: int) -> SamplingParams:
    """Greedy, and never the end token, so that every answer is `tokens` long."""
    ends = ((model.tokenizer.eos_id, -100.0),)
    return SamplingParams(max_tokens=tokens, temperature=0, logit_bias=ends)


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds: wall-clock, and CPU of this process."""

    wall: float
    cpu: float


def measured(run: Callable[..., float | None], *arguments: object) -> Cost:
    """What `run(*arguments)` costs; it may give a wall-clock time of its own."""
    wall, cpu = time.perf_counter(), time.process_time()
    own = run(*arguments)
    cpu = time.process_time() - cpu
    return Cost(time.perf_counter() - wall if own is None else own, cpu)


def alone(model: LocalModel, streams: int, tokens: int) -> None:
    """All answers, the engine called in this thread."""
    model.engine.forget()
    for prompt in prompts(model, streams):
        model.engine.submit(prompt, params(model, tokens))
    while model.engine.busy:
        model.engine.step()


def behind_service(model: LocalModel, streams: int, tokens: int) -> None:
    """All answers as streams of the service."""
    model.engine.forget()

    async def one(prompt: list[int]) -> None:
        async for _ in model.service.stream(prompt, params(model, tokens)):
            pass

    async def every() -> None:
        await asyncio.gather(*(one(prompt) for prompt in prompts(model, streams)))

    asyncio.run(every())


def served(model: LocalModel, streams: int, tokens: int, url: str, folder: Path) -> float:
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
    return max(answer["ended"] for answer in answers) - min(answer["sent"] for answer in answers)


class Served:
    """The model behind the server, in a thread of its own, while the block runs."""

    def __init__(self, model: LocalModel) -> None:
        app = create_app(model.service, model.tokenizer, model_name=model.name, defaults=model.defaults)
        # connections as those of `dsv4 serve`
        config = uvicorn.Config(app, port=0, log_level="warning", access_log=False, http=HeaderClock, ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve()))

    def __enter__(self) -> str:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def __exit__(self, *error: object) -> None:
        self._server.should_exit = True
        self._thread.join()


def compare(folder: Path, streams: int, tokens: int, repeats: int) -> tuple[list[Cost], list[Cost], list[Cost]]:
    """The costs of engine, service and server, measured in turns so that all see the same machine."""
    own: list[Cost] = []
    service: list[Cost] = []
    http: list[Cost] = []
    for _ in range(repeats):
        model = load(folder, "fp32", context_length=2048, draft="none")  # anew, since a service keeps its engine
        alone(model, streams, 8)
        own.append(measured(alone, model, streams, tokens))
        behind_service(model, streams, 8)
        service.append(measured(behind_service, model, streams, tokens))
        with Served(model) as url, tempfile.TemporaryDirectory() as place:
            served(model, streams, 8, url, Path(place))
            http.append(measured(served, model, streams, tokens, url, Path(place)))
        model.service.close()
    return own, service, http


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "models" / "nano")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sys.setswitchinterval(SWITCH_SECONDS)
    rows: list[dict[str, object]] = []
    print(f"microseconds per token, wall-clock (CPU); the aim is served <= engine + {AIM:g} %")
    print(f"{'streams':>8}{'engine':>18}{'service':>18}{'served':>18}{'service':>11}{'served':>9}")
    for streams in (1, 8):
        costs = compare(given.folder, streams, given.tokens, given.repeats)
        tokens = streams * given.tokens
        wall = [1e6 * statistics.median(cost.wall for cost in way) / tokens for way in costs]
        cpu = [1e6 * statistics.median(cost.cpu for cost in way) / tokens for way in costs]
        shown = "".join(f"{a:>10.0f} ({b:5.0f})" for a, b in zip(wall, cpu, strict=True))
        print(f"{streams:>8}{shown}{100 * (wall[1] / wall[0] - 1):>+10.1f}%{100 * (wall[2] / wall[0] - 1):>+8.1f}%")
        names = ("engine", "service", "served")
        row = {f"{name}_us": [a, b] for name, a, b in zip(names, wall, cpu, strict=True)}
        rows.append({"benchmark": "server", "model": given.folder.name, "streams": streams, **row})
    if given.json:
        append_lines(given.json, rows)


if __name__ == "__main__":
    main()
