"""The logits of a request, bit for bit, whatever runs beside it and however its tokens came into the cache.

Holds for the native kernels: each row of each operation is computed from its own data alone, in one order. On plain
torch the same scenarios stay within 2e-5 (tests/parity).
"""

from functools import cache
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from dsv4.cache.disk import DiskTier
from dsv4.cache.prefix import ReusePolicy, Windows
from dsv4.engine import Engine
from dsv4.engine.request import Request
from dsv4.generation import RequestOptions, SamplingParams
from dsv4.kernels import native
from dsv4.testing.tiny import tiny_model

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no native kernels: {native.why_not()}")
VOCABULARY = 97
ANSWER = 6
NO_REUSE = ReusePolicy(snapshots=0)
# every length modulo 4, around the window and the 128-token blocks, around a page
LENGTHS = [*range(1, 10), *range(124, 134), *range(253, 261), 383, 384, 385, 387]


@cache
def model() -> Any:
    return tiny_model()


def prompt_of(length: int, seed: int = 0) -> list[int]:
    own = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (length,), generator=own).tolist()


class Recorder:
    """An engine that remembers the logits every token was sampled from."""

    def __init__(self, **options: Any) -> None:
        settings = {"context_length": 1024, "cache_tokens": 8192, "reuse": NO_REUSE} | options
        self.rows: dict[Request, list[Tensor]] = {}
        self.engine = Engine(model(), observer=self._sampled_from, **settings)
        self.engine.ends = frozenset()
        if self.engine.runner.lookup is not None:  # every looked-up draft is checked, however long that takes
            self.engine.runner.lookup.lengths = lambda survivals: list(map(len, survivals))  # type: ignore[method-assign]

    def _sampled_from(self, request: Request, logits_V: Tensor) -> None:
        self.rows.setdefault(request, []).append(logits_V.clone())

    def submit(self, prompt: list[int], answer: int = ANSWER, seed: int = 0, **options: Any) -> Request:
        params = SamplingParams(max_tokens=answer, temperature=0.8, seed=seed)
        return self.engine.submit(prompt, params, RequestOptions(**options))

    def finish(self) -> None:
        while self.engine.busy:
            self.engine.step()
        assert self.engine.check_integrity()

    def logits(self, request: Request) -> Tensor:
        return torch.stack(self.rows[request])


def run(prompt: list[int], answer: int = ANSWER, **options: Any) -> tuple[list[int], Tensor]:
    recorder = Recorder(**options)
    request = recorder.submit(prompt, answer)
    recorder.finish()
    return request.tokens, recorder.logits(request)


@cache
def alone(prompt: tuple[int, ...], answer: int = ANSWER) -> tuple[list[int], Tensor]:
    """One request in an empty engine, its prompt in one chunk."""
    return run(list(prompt), answer, step_tokens=4096)


def check(recorder: Recorder, request: Request, prompt: list[int], answer: int = ANSWER) -> None:
    tokens, logits = alone(tuple(prompt), answer)
    assert request.tokens == tokens
    assert torch.equal(recorder.logits(request), logits)


@pytest.mark.parametrize("length", LENGTHS)
def test_chunks_and_neighbours_change_no_bit(length: int) -> None:
    recorder = Recorder(step_tokens=37, sequences=4)
    jobs = [prompt_of(n, seed) for seed, n in enumerate([length, 5, 130, length])]
    requests = []
    for prompt in jobs:
        requests.append(recorder.submit(prompt))
        recorder.engine.step()
    recorder.finish()
    for request, prompt in zip(requests, jobs, strict=True):
        check(recorder, request, prompt)


@pytest.mark.parametrize("windows", ["periodic", "full", "none"])
@pytest.mark.parametrize("length", LENGTHS)
def test_a_reused_prefix_changes_no_bit(length: int, windows: Windows) -> None:
    """A first turn, the same again, a second turn on top of its answer, and another branch of it."""
    recorder = Recorder(reuse=ReusePolicy(windows, 256, 20), step_tokens=64, speculate=True, lookup=9)
    first = prompt_of(length)
    opening = recorder.submit(first, cache_points=(length // 2,))
    recorder.finish()
    second = opening.tokens + prompt_of(7, seed=1)
    for prompt in (first, second, first + prompt_of(3, seed=2), first[: length // 2] + prompt_of(9, seed=3)):
        request = recorder.submit(prompt)
        recorder.finish()
        check(recorder, request, prompt)
        if windows == "periodic" and prompt is second:
            assert request.reused == len(opening.tokens) - 1
    if windows == "periodic" and length > 1:
        assert recorder.engine.cache.prefixes.counts.hits == 4


@pytest.mark.parametrize("length", [1100, 1155])
@pytest.mark.parametrize("windows", ["full", "none"])
def test_long_prefixes_are_reused_in_every_strategy(length: int, windows: Windows) -> None:
    recorder = Recorder(context_length=2048, reuse=ReusePolicy(windows, 256, 60))
    prompt = prompt_of(length)
    recorder.submit(prompt)
    recorder.finish()
    again = recorder.submit([*prompt[:-1], 5, 6])
    recorder.finish()
    warm_up = recorder.engine.cache.prefixes.warm_up if windows == "none" else 0
    assert again.reused == length - 1 - warm_up
    fresh = Recorder(context_length=2048, step_tokens=4096)
    wanted = fresh.submit([*prompt[:-1], 5, 6])
    fresh.finish()
    assert torch.equal(recorder.logits(again), fresh.logits(wanted))


@pytest.mark.parametrize("length", [127, 250])
@pytest.mark.parametrize("kept", [0, 6])
@pytest.mark.parametrize("lookup", [0, 16])
def test_preemption_changes_no_bit(length: int, kept: int, lookup: int) -> None:
    """Answers outgrow the pages; whoever gives way comes back by its snapshot or by computing again."""
    recorder = Recorder(
        context_length=768, cache_tokens=1024, sequences=3, lookup=lookup, reuse=ReusePolicy(snapshots=kept)
    )
    jobs = [prompt_of(length + seed, seed) for seed in range(3)]
    requests = [recorder.submit(prompt, 260) for prompt in jobs]
    recorder.finish()
    assert recorder.engine.counts.preempted > 0
    for request, prompt in zip(requests, jobs, strict=True):
        check(recorder, request, prompt, 260)


@pytest.mark.parametrize("length", LENGTHS)
def test_speculation_changes_no_bit(length: int) -> None:
    recorder = Recorder(speculate=True, step_tokens=50)
    prompt = prompt_of(length)
    request = recorder.submit(prompt)
    recorder.finish()
    check(recorder, request, prompt)
    assert recorder.engine.counts.drafted > 0


def test_accepted_drafts_change_no_bit() -> None:
    """A draft that is always right: every step says two tokens, through all borders of blocks and pages."""
    prompt = prompt_of(120)
    tokens, logits = alone(tuple(prompt), 200)
    recorder = Recorder(speculate=True)
    real = recorder.engine.runner.draft

    def draft(works: Any, ran: Any) -> None:
        real(works, ran)
        for work in works:
            if work.request.drafts and work.request.number % 2 == 0:
                work.request.drafts = [tokens[len(work.request.tokens)]]

    recorder.engine.runner.draft = draft  # type: ignore[method-assign]
    request = recorder.submit(prompt, 200)
    recorder.finish()
    assert request.tokens == tokens
    assert torch.equal(recorder.logits(request), logits)
    assert recorder.engine.counts.accepted == recorder.engine.counts.drafted >= 99


@pytest.mark.parametrize("length", [5, 130, 258, 600])
def test_a_restored_prefix_changes_no_bit(length: int, tmp_path: Path) -> None:
    first = prompt_of(length)
    for attempt in range(2):
        disk = DiskTier(tmp_path, budget=2**30, fingerprint="tiny")
        recorder = Recorder(reuse=ReusePolicy(snapshots=8), disk=disk)
        prompt = first + prompt_of(4, seed=9)[: 4 * attempt]
        request = recorder.submit(prompt)
        recorder.finish()
        check(recorder, request, prompt)
        assert request.reused == (length - 1) * attempt
        recorder.engine.close()


jobs = st.lists(
    st.tuples(
        st.sampled_from([3, 60, 127, 128, 131, 255, 259]), st.integers(0, 2), st.integers(1, 30), st.integers(0, 6)
    ),
    min_size=2,
    max_size=7,
)


@given(jobs, st.booleans(), st.sampled_from([0, 16]), st.sampled_from(["periodic", "full", "none"]))
@settings(max_examples=16, deadline=None)
def test_everything_at_once_changes_no_bit(
    work: list[tuple[int, int, int, int]], speculate: bool, lookup: int, windows: Windows
) -> None:
    recorder = Recorder(
        context_length=512,
        cache_tokens=768,
        sequences=3,
        step_tokens=48,
        speculate=speculate,
        lookup=lookup,
        reuse=ReusePolicy(windows, 256, 4),
    )
    made: list[tuple[Request, list[int], int]] = []
    for length, family, answer, steps in work:
        prompt = prompt_of(length, family)
        made.append((recorder.submit(prompt, answer), prompt, answer))
        for _ in range(steps):
            recorder.engine.step()
    recorder.finish()
    for request, prompt, answer in made:
        check(recorder, request, prompt, answer)
