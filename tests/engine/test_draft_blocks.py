"""Drafting with the draft head (DSpark): the bits of the run without drafts, whatever is drafted and rejected."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv4.cache.prefix import ReusePolicy, Windows
from dsv4.engine import Engine
from dsv4.engine.draft_pace import DraftPace
from dsv4.engine.request import Request
from dsv4.generation import FinishReason, RequestOptions, SamplingParams
from dsv4.kernels import native
from dsv4.model.dspark import BlockKeys
from dsv4.model.layers import FP32, Numerics
from dsv4.model.transformer import Transformer
from dsv4.testing.tiny import tiny_draft_config, tiny_model
from tests.model.draft_context import ContextOnly

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no native kernels: {native.why_not()}")
BLOCK, TOKENS = 5, 96
NO_REUSE = ReusePolicy(snapshots=0)
RELEASE = Numerics(torch.bfloat16, simulate=True)


@cache
def model(numerics: Numerics = FP32) -> Transformer:
    return tiny_model(tiny_draft_config(), numerics=numerics)


class Fixed:
    """Checks the same number of drafts in every step."""

    def __init__(self, count: int) -> None:
        self.count, self.survivals = count, list[Sequence[float]]()

    def wanted(self) -> bool:
        return True

    def lengths(self, survivals: Sequence[Sequence[float]]) -> list[int]:
        self.survivals += survivals
        return [min(self.count, len(request)) for request in survivals]

    def stepped(self, rows: int, seconds: float) -> None: ...

    def drafted(self, seconds: float) -> None: ...


class Recorder:
    """An engine that remembers the logits every token was sampled from."""

    def __init__(self, drafts: int | None, numerics: Numerics = FP32, **options: Any) -> None:
        settings = {"context_length": 1024, "cache_tokens": 8192, "reuse": NO_REUSE} | options
        self.rows: dict[Request, list[Tensor]] = {}
        self.engine = Engine(model(numerics), observer=self._seen, speculate=drafts is not None, **settings)
        self.engine.ends = frozenset()
        self.pace = self.engine.runner.pace = Fixed(drafts or 0)

    def _seen(self, request: Request, logits_V: Tensor) -> None:
        self.rows.setdefault(request, []).append(logits_V.clone())

    def submit(self, prompt: list[int], answer: int = 24, seed: int = 0, **options: Any) -> Request:
        params = SamplingParams(max_tokens=answer, temperature=seed % 3 * 0.5, top_p=0.9, seed=seed)
        return self.engine.submit(prompt, params, RequestOptions(**options))

    def finish(self) -> "Recorder":
        while self.engine.busy:
            self.engine.step()
        assert self.engine.check_integrity()
        return self

    def draft(self, make: Any) -> None:
        """Replace the head's drafts by make(request) -> tokens."""
        blocks = self.engine.runner._blocks
        assert blocks is not None

        def propose(requests: list[Request], pace: object, fused: object) -> None:
            for request in requests:
                request.drafts = make(request)[: request.room]

        blocks.propose = propose  # type: ignore[method-assign,assignment]


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, TOKENS, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@cache
def alone(length: int, answer: int = 24, seed: int = 0) -> tuple[list[int], Tensor]:
    """Without drafts, in an empty engine."""
    recorder = Recorder(None, step_tokens=4096)
    request = recorder.submit(prompt_of(length, seed), answer, seed)
    recorder.finish()
    return request.tokens, torch.stack(recorder.rows[request])


def check(recorder: Recorder, request: Request, length: int, answer: int = 24, seed: int = 0) -> None:
    tokens, logits = alone(length, answer, seed)
    assert request.tokens == tokens
    assert torch.equal(torch.stack(recorder.rows[request]), logits)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("drafts", [0, 1, 3, 5])
def test_batches_chunks_and_seeds_say_what_they_say_without_drafts(drafts: int, fused: bool) -> None:
    recorder = Recorder(drafts, step_tokens=37, sequences=4, fused=fused)
    jobs = [(1, 0), (5, 1), (130, 2), (259, 3)]
    requests = []
    for length, seed in jobs:
        requests.append(recorder.submit(prompt_of(length, seed), seed=seed))
        recorder.engine.step()
    recorder.finish()
    for request, (length, seed) in zip(requests, jobs, strict=True):
        check(recorder, request, length, seed=seed)
    assert (recorder.engine.counts.drafted > 0) == (drafts > 0)


@pytest.mark.parametrize("length", [*range(1, 9), *range(122, 134), *range(253, 259)])
def test_every_kind_of_rejection_at_every_border(length: int) -> None:
    """Drafts are right up to each place in turn and wrong from there: blocks, windows and pages end among them."""
    answer = 40
    tokens, _ = alone(length, answer)
    recorder = Recorder(BLOCK)
    rounds = [(size, right) for size in range(1, BLOCK + 1) for right in range(size + 1)]

    def make(request: Request) -> list[int]:
        size, right = rounds[(request.generated + length) % len(rounds)]
        true = tokens[len(request.tokens) : len(request.tokens) + size]
        return [token if i < right else (token + 1) % TOKENS for i, token in enumerate(true)]

    recorder.draft(make)
    request = recorder.submit(prompt_of(length), answer)
    recorder.finish()
    check(recorder, request, length, answer)
    assert 0 < recorder.engine.counts.accepted < recorder.engine.counts.drafted


def test_right_drafts_are_all_kept() -> None:
    """25 tokens: the prompt's step gives one, then each step six."""
    tokens, _ = alone(9, 25)
    recorder = Recorder(BLOCK)
    recorder.draft(lambda request: tokens[len(request.tokens) :][:BLOCK])
    request = recorder.submit(prompt_of(9), 25)
    recorder.finish()
    check(recorder, request, 9, 25)
    assert recorder.engine.counts.steps == 5
    assert recorder.engine.counts.accepted == recorder.engine.counts.drafted == 20


@pytest.mark.parametrize("windows", ["periodic", "full", "none"])
@pytest.mark.parametrize("length", [3, 127, 130, 255, 258])
def test_a_reused_prefix_changes_no_bit(length: int, windows: Windows) -> None:
    recorder = Recorder(BLOCK, reuse=ReusePolicy(windows, 256, 20), step_tokens=64)
    first = prompt_of(length)
    opening = recorder.submit(first, cache_points=(length // 2,))
    recorder.finish()
    for prompt in (first, opening.tokens + prompt_of(7, seed=1), first + prompt_of(3, seed=2)):
        request = recorder.submit(prompt)
        recorder.finish()
        fresh = Recorder(None, step_tokens=4096)
        wanted = fresh.submit(prompt)
        fresh.finish()
        assert request.tokens == wanted.tokens
        assert torch.equal(torch.stack(recorder.rows[request]), torch.stack(fresh.rows[wanted]))


@pytest.mark.parametrize("kept", [0, 6])
def test_preemption_and_cancellation_change_no_bit(kept: int) -> None:
    recorder = Recorder(
        BLOCK, context_length=768, cache_tokens=1024, sequences=3, reuse=ReusePolicy(snapshots=kept), step_tokens=200
    )
    requests = [recorder.submit(prompt_of(127 + seed, seed), 260, seed) for seed in range(3)]
    other = recorder.submit(prompt_of(30, 9), 200, 9)
    while other.generated < 20:
        recorder.engine.step()
    recorder.engine.cancel(other)
    recorder.finish()
    assert recorder.engine.counts.preempted > 0
    for seed, request in enumerate(requests):
        check(recorder, request, 127 + seed, 260, seed)


@pytest.mark.parametrize("numerics", [FP32, RELEASE, Numerics(torch.bfloat16)])
@pytest.mark.parametrize("dtype", ["fp32", "release"])
def test_the_fused_head_has_the_bits_of_the_head_op_by_op(numerics: Numerics, dtype: Any) -> None:
    """Rings of the stages, confidences and drafts, with rejected rows in between."""
    found = []
    for fused in (True, False):
        recorder = Recorder(3, numerics, fused=fused, cache_dtype=dtype, sequences=3, step_tokens=50)
        rings = [layer.window_SWX for layer in recorder.engine.cache.store.layers[-2:]]
        for ring in rings:
            ring.fill_(0)
        requests = [recorder.submit(prompt_of(n, n), 20, n) for n in (4, 140, 61)]
        recorder.finish()
        assert recorder.engine.runner.fused == fused
        found.append(([r.tokens for r in requests], recorder.pace.survivals, rings))
    assert found[0][:2] == found[1][:2]
    assert all(torch.equal(a, b) for a, b in zip(found[0][2], found[1][2], strict=True))


def test_the_context_rows_of_kept_tokens_are_those_of_one_pass() -> None:
    """Rejected rows leave nothing behind in the window that the next block reads."""
    rings = []
    for drafts in (BLOCK, 0):
        recorder = Recorder(drafts, sequences=1)
        request = recorder.submit(prompt_of(150, 4), 60, 4)
        while request.generated < 50:
            recorder.engine.step()
        assert 199 <= request.cached < 205
        slot, size = request.running_place.slot, recorder.engine.cache.store.spec.window_rows
        # at most 210 positions are written: those from 77 on are there in both runs
        places = [position % size for position in range(77, 199)]
        stages = recorder.engine.cache.store.layers[-2:]
        rings.append([stage.window_SWX[slot, places].clone() for stage in stages])
    assert all(torch.equal(a, b) for a, b in zip(*rings, strict=True))


@pytest.mark.parametrize("fused", [True, False])
def test_the_engine_drafts_what_the_draft_loss_sees(fused: bool) -> None:
    """The first choices and confidences of each block, made from one pass over the text before it as in training."""
    recorder, found = Recorder(BLOCK, fused=fused, sequences=1), list[tuple[list[int], list[int]]]()
    propose = recorder.engine.runner._blocks.propose  # type: ignore[union-attr]

    def watched(requests: list[Request], *others: Any) -> None:
        propose(requests, *others)
        found.extend((list(request.tokens), list(request.drafts)) for request in requests)

    recorder.engine.runner._blocks.propose = watched  # type: ignore[union-attr,method-assign]
    recorder.submit(prompt_of(120, 2), 20)
    recorder.finish()
    head, last, taps = model().config.draft_head, model().stages[-1], list[Tensor]()
    text = torch.tensor(found[-1][0])
    assert len({len(tokens) for tokens, drafts in found if len(drafts) == BLOCK}) > 8  # on both sides of the window
    with torch.inference_mode():
        model().hidden(text, model().pack([len(text)]), taps=taps)
        rows = model().draft_context(torch.cat(taps, dim=1), torch.arange(len(text)))
        for (tokens, drafts), survivals in zip(found, recorder.pace.survivals, strict=True):
            place = len(tokens) - 1
            keys = BlockKeys([range(max(0, place - model().config.sliding_window), place)], BLOCK)
            block = torch.tensor([tokens[-1]] + [head.noise_token_id] * (BLOCK - 1))
            cache = ContextOnly(model().config, rows, keys)
            y_TSD = model().draft_hidden(block, model().pack([BLOCK], [place]), cache)  # type: ignore[arg-type]
            rows_TD, head_TD = model().draft_rows(y_TSD)
            embedded_Tr, bias_TV = last.markov_head(torch.tensor([tokens[-1], *drafts])[: len(drafts)])
            assert (model().head(head_TD[: len(drafts)]) + bias_TV).argmax(dim=1).tolist() == drafts
            sure_T = last.confidence_head(rows_TD[: len(drafts)], embedded_Tr).sigmoid()
            assert survivals == pytest.approx(sure_T.cumprod(0).tolist(), rel=1e-3)


def test_an_answer_ends_inside_accepted_drafts() -> None:
    tokens, _ = alone(9, 25)
    recorder = Recorder(BLOCK)
    recorder.draft(lambda request: tokens[len(request.tokens) :][:BLOCK])
    said = tokens[9:]
    for limit in range(1, 9):
        request = recorder.submit(prompt_of(9), limit)
        params = SamplingParams(max_tokens=25, temperature=0, stop_ids=(said[limit],))
        stop = recorder.engine.submit(prompt_of(9), params)
        ends = {}
        while recorder.engine.busy:
            ends |= {r: e.finish for r, e in recorder.engine.step() if e.finish is not None}
        assert request.tokens[9:] == said[:limit]
        assert stop.tokens[9:] == said[: said.index(said[limit]) + 1]
        assert ends == {request: FinishReason.LENGTH, stop: FinishReason.STOP}


def test_a_guess_from_the_same_logits_is_the_token_that_will_be_chosen() -> None:
    """At every temperature, and ahead of the tokens in between."""
    recorder = Recorder(None)
    for seed in range(6):
        request = recorder.submit(prompt_of(3), 4, seed)
        rows = torch.randn(3, 97, generator=torch.Generator().manual_seed(seed))
        guessed = [request.sampler.guess(row, k) for k, row in enumerate(rows)]
        assert guessed == [request.sampler.choose(row) for row in rows]
    recorder.finish()


def test_numbers_of_the_head_that_are_not_finite_harm_no_answer() -> None:
    broken = tiny_model(tiny_draft_config())
    with torch.no_grad():
        broken.stages[0].main_proj.weight.fill_(float("nan"))
    engine = Engine(broken, context_length=256, speculate=True)
    engine.ends = frozenset()
    request = engine.submit(prompt_of(9), SamplingParams(max_tokens=25, temperature=0))
    while engine.busy:
        engine.step()
    assert request.tokens == alone(9, 25)[0]


def test_pace_checks_sure_drafts_and_pauses_where_drafting_does_not_pay() -> None:
    pace = DraftPace()
    assert pace.lengths([[0.9, 0.8], [0.1]]) == [2, 1]  # nothing is measured yet
    for rows in (1, 2, 3, 4, 5, 6) * 20:
        pace.stepped(rows, 1.0 + 0.25 * (rows - 1))
    pace.drafted(0.05)
    assert pace.lengths([[0.95, 0.9, 0.85, 0.2, 0.1]]) == [3]
    assert pace.lengths([[0.95, 0.9], [0.1, 0.05], [0.9, 0.2]]) == [2, 0, 1]
    assert pace.lengths([[float("nan")] * 5]) == [0]
    assert pace.wanted() is False  # the last round had nothing to gain
    assert [pace.wanted() for _ in range(40)].index(True) == 15
    pace.drafted(0.05)
    assert pace.lengths([[0.95, 0.9, 0.85, 0.8, 0.75]]) == [5]
    assert pace.wanted()
