"""Many clients at once, over real sockets, from another process: every token arrives once, in order, and soon.

How soon is printed and decides nothing: the time between the generator's giving a token out and a client's having it.
"""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsv4.cli.serve import SWITCH_SECONDS
from dsv4.encoding import Tokenizer
from dsv4.generation import FinishReason, RequestOptions, SamplingParams, TokenEvent
from dsv4.server import Settings, create_app
from tests.conftest import ROOT
from tests.server.conftest import listening

STREAMS, LENGTH = 64, 100
SECONDS_A_TOKEN = 0.05
BODY = {"messages": [{"role": "user", "content": "stream {stream} round {round}"}]}
BODY |= {"stream": True, "thinking": {"type": "disabled"}}
MOST_GROWTH = 48 << 20


@pytest.fixture(autouse=True)
def threads_as_in_service() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    yield
    sys.setswitchinterval(before)


class PacedModel:
    """Gives out LENGTH letters that depend on the request, one every `pause` seconds, and notes when."""

    def __init__(self, tokenizer: Tokenizer, pause: float) -> None:
        self._tokenizer, self._pause = tokenizer, pause
        self._letters = [tokenizer.encode_text(letter)[0] for letter in "abcdefghijklmnopqrstuvwxyz"]
        self.times: dict[str, list[float]] = {}
        self.texts: dict[str, str] = {}

    @property
    def context_length(self) -> int:
        return 4096

    async def stream(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> AsyncGenerator[TokenEvent, None]:
        match = re.search(r"stream (\d+) round (\d+)", self._tokenizer.decode(prompt))
        assert match is not None
        name = f"{match[1]} {match[2]}"
        tokens = [self._letters[(int(match[1]) + 7 * int(match[2]) + i * i) % 26] for i in range(LENGTH)]
        self.texts[name] = self._tokenizer.decode(tokens)
        times = self.times[name] = []
        for token in tokens:
            await asyncio.sleep(self._pause)
            times.append(time.monotonic())
            yield TokenEvent(token)
        yield TokenEvent(self._tokenizer.eos_id, FinishReason.STOP)


def load(model: PacedModel, tokenizer: Tokenizer, folder: Path, *, seconds: float, rounds: int) -> list[dict[str, Any]]:
    """The answers of STREAMS clients in their own process."""
    request = folder / "request.json"
    request.write_text(json.dumps(BODY))
    app = create_app(model, tokenizer, model_name="tiny", settings=Settings())
    command = [sys.executable, "-m", "benchmarks.stream_clients"]
    flags = [f"--streams={STREAMS}", f"--seconds={seconds}", f"--rounds={rounds}"]
    with listening(SimpleNamespace(app=app)) as url:
        done = subprocess.run(
            [*command, f"{url}/v1/chat/completions", str(request), *flags], cwd=ROOT, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def delays(model: PacedModel, answers: Sequence[dict[str, Any]]) -> list[float]:
    """Milliseconds from generator to client of every token, in order; checks that each arrived exactly once."""
    found: list[float] = []
    for answer in answers:
        name = answer["name"]
        assert answer["text"] == model.texts[name]
        assert answer["tokens"] == LENGTH + 1
        assert len(answer["times"]) == LENGTH
        found += [1e3 * (got - given) for got, given in zip(answer["times"], model.times[name], strict=True)]
    return sorted(found)


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_every_token_arrives_once(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = PacedModel(tokenizer, 0.0)
    answers = load(model, tokenizer, tmp_path, seconds=60, rounds=1)
    assert sorted(answer["name"] for answer in answers) == sorted(f"{stream} 0" for stream in range(STREAMS))
    times = delays(model, answers)
    span = max(answer["times"][-1] for answer in answers) - min(answer["sent"] for answer in answers)
    print(f"\n{STREAMS} clients, {len(times)} tokens as fast as they go: {len(times) / span:.0f} tokens/s")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_a_minute_of_load(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = PacedModel(tokenizer, SECONDS_A_TOKEN)
    load(model, tokenizer, tmp_path, seconds=60, rounds=1)
    before = resident_bytes()
    model.times.clear()
    answers = load(model, tokenizer, tmp_path, seconds=60, rounds=1000)
    grown = resident_bytes() - before
    times = delays(model, answers)
    p50, p99, worst = times[len(times) // 2], times[int(len(times) * 0.99)], times[-1]
    print(
        f"\n{STREAMS} clients, {len(answers)} answers, {len(times)} tokens, each one every {SECONDS_A_TOKEN:g} s: "
        f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, worst {worst:.2f} ms from generator to client; "
        f"memory {grown / 2**20:+.1f} MiB"
    )
    assert len(answers) >= STREAMS
    assert grown < MOST_GROWTH
