"""What a traced request tells: the model's own choices, position by position, at no cost to anybody else."""

from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv4.cache.format import default_cache_dtype
from dsv4.cache.prefix import ReusePolicy
from dsv4.engine import Engine
from dsv4.engine.request import Request
from dsv4.engine.trace import StepTrace
from dsv4.generation import RequestOptions, SamplingParams, TokenEvent, TokenTrace
from dsv4.kernels.indexer_loss import IndexedAttention
from dsv4.model.layers import BF16, FP32, RELEASE
from dsv4.model.step import Regime
from dsv4.model.transformer import Transformer
from dsv4.posttraining.traces import TracePieces
from dsv4.testing.tiny import tiny_model

VOCABULARY = 97
TRACED = SamplingParams(max_tokens=40, seed=3, logprobs=True, trace=True)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    own = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (length,), generator=own).tolist()


def engine_of(model: Transformer, **options: Any) -> Engine:
    engine = Engine(model, **{"context_length": 600, "step_tokens": 64, **options})
    engine.ends = frozenset()
    return engine


def run(engine: Engine, jobs: Sequence[tuple[list[int], SamplingParams]]) -> list[list[TokenEvent]]:
    requests = [engine.submit(prompt, params) for prompt, params in jobs]
    events: dict[Request, list[TokenEvent]] = {request: [] for request in requests}
    while engine.busy:
        for request, event in engine.step():
            events[request].append(event)
    return [events[request] for request in requests]


def joined(prompt: list[int], events: Sequence[TokenEvent]) -> TracePieces:
    pieces = TracePieces(list(prompt))
    for event in events:
        assert event.trace is not None
        pieces.add(event.trace)
        if event.token is not None:
            pieces.tokens.append(event.token)
    return pieces


class Seen:
    """What one fresh pass over a whole sequence chooses."""

    def __init__(self, model: Transformer, tokens: Sequence[int]) -> None:
        self.experts: dict[int, Tensor] = {}
        self.entries: dict[int, tuple[Tensor | None, Tensor]] = {}
        with torch.inference_mode():
            sequences = model.pack([len(tokens)])
            model.hidden(torch.tensor(tokens), sequences, None, self, Regime(indexed=self.indexed))

    def routed(self, layer: int, score_TE: Tensor, ids_TK: Tensor) -> None:
        self.experts[layer] = ids_TK

    def indexed(self, seen: IndexedAttention) -> None:
        self.entries[seen.layer] = seen.chosen_TK, seen.visible_T

    def check(self, trace: TokenTrace) -> None:
        assert trace.experts.keys() == self.experts.keys() == {0, 1, 2, 3}
        for layer, ids_TK in self.experts.items():
            assert [list(row) for row in trace.experts[layer]] == ids_TK.tolist()
        assert trace.entries.keys() == self.entries.keys() == {1, 3}
        for layer, (chosen_TK, visible_T) in self.entries.items():
            assert chosen_TK is not None
            for row, chosen, visible in zip(trace.entries[layer], chosen_TK.tolist(), visible_T.tolist(), strict=True):
                assert sorted(row) == [entry for entry in chosen if entry >= 0]
                assert isinstance(row, range) == (len(row) == visible)


@pytest.mark.parametrize("numerics", [FP32, BF16, RELEASE], ids=["fp32", "bf16", "release"])
def test_the_trace_is_what_a_whole_pass_chooses(numerics: Any) -> None:
    model, prompt = tiny_model(numerics=numerics), prompt_of(150)
    # rows as the fresh pass holds them
    assert default_cache_dtype(model) in ("fp32", "bf16", "release")
    (events,) = run(engine_of(model), [(prompt, TRACED)])
    pieces = joined(prompt, events)
    tokens = pieces.tokens[:-1]
    trace = pieces.whole(len(tokens))
    assert (trace.first, trace.last) == (0, len(tokens)) == (0, 189)
    assert not any(trace.kept)
    if numerics is not RELEASE:
        Seen(model, tokens).check(trace)
    chosen = [list(row) for row in trace.entries[1]]
    assert all(len(row) == min(8, (i + 1) // 4) for i, row in enumerate(chosen))


def test_tracing_changes_no_token_and_costs_nobody_else_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, jobs = engine_of(tiny_model()), [(prompt_of(70 + i, i), replace(TRACED, seed=i)) for i in range(3)]
    plain = [(prompt, replace(params, trace=False)) for prompt, params in jobs]
    made: list[int] = []

    class Counted(StepTrace):
        def __init__(self) -> None:
            made.append(1)
            super().__init__()

    monkeypatch.setattr("dsv4.engine.runner.StepTrace", Counted)
    expected, how = run(engine, plain), engine.runner.describe()
    assert not made, "without a trace, steps are as before"
    mixed = run(engine, [jobs[0], plain[1], jobs[2]])
    assert made
    assert engine.runner.describe() == how
    for events, others in zip(mixed, expected, strict=True):
        assert [(e.token, e.logprobs) for e in events] == [(e.token, e.logprobs) for e in others]
    assert [all(e.trace is None for e in events) for events in mixed] == [False, True, False]


def test_a_prefix_from_the_cache_is_not_traced_and_a_sibling_lends_it() -> None:
    engine, prompt = engine_of(tiny_model(), reuse=ReusePolicy(snapshots=8)), prompt_of(200)
    first, second = (run(engine, [(prompt, replace(TRACED, seed=seed))])[0] for seed in (1, 2))
    assert (first[0].reused, second[0].reused) == (0, 199)
    lender, borrower = joined(prompt, first), joined(prompt, second)
    assert lender.missing(200) == []
    assert borrower.missing(200) == list(range(199))
    with pytest.raises(ValueError, match=r"no trace of position 0 \(199 of 230 are missing\)"):
        borrower.whole(230)
    borrower.borrow([lender], 239)
    Seen(engine.model, borrower.tokens[:-1]).check(borrower.whole(239))


def test_positions_that_only_warm_the_windows_of_a_prefix_are_not_traced() -> None:
    """They are computed from windows that are not full, so their choices are not those of the sequence."""
    engine = engine_of(tiny_model(), reuse=ReusePolicy(windows="none"), context_length=1200)
    prompt = prompt_of(1100)
    first, second = (run(engine, [(prompt, replace(TRACED, max_tokens=3, seed=seed))])[0] for seed in (1, 2))
    lender, borrower = joined(prompt, first), joined(prompt, second)
    warmed = range(second[0].reused or 0, len(borrower.missing(1100)))
    assert len(warmed) > 100
    borrower.borrow([lender], 1102)
    Seen(engine.model, borrower.tokens[:-1]).check(borrower.whole(1102))


def test_a_preempted_request_tells_all_of_it() -> None:
    jobs = [(prompt_of(120 + i, i), replace(TRACED, max_tokens=140, seed=i)) for i in range(4)]
    engine = engine_of(tiny_model(), cache_tokens=640, sequences=4)
    for (prompt, _), events in zip(jobs, run(engine, jobs), strict=True):
        pieces = joined(prompt, events)
        Seen(engine.model, pieces.tokens[:-1]).check(pieces.whole(len(pieces.tokens) - 1))
    assert engine.counts.preempted > 0


@pytest.mark.parametrize("cut", [{"top_p": 0.6}, {"top_k": 5}, {"min_p": 0.2}, {"top_p": 0.9, "top_k": 7}])
def test_ids_left_by_truncation_are_told_with_their_mass(cut: dict[str, Any]) -> None:
    rows: list[Tensor] = []
    engine = engine_of(tiny_model(), observer=lambda request, logits_V: rows.append(logits_V.clone()))
    (events,) = run(engine, [(prompt_of(30), replace(TRACED, **cut))])
    for event, logits_V in zip(events, rows, strict=True):
        assert event.trace is not None
        assert event.logprobs is not None
        assert event.trace.kept[:-1] == [None] * (len(event.trace.kept) - 1)
        kept, mass = event.trace.kept[-1], event.trace.masses[-1]
        assert kept is not None
        assert event.token in kept
        assert list(kept) == sorted(kept)
        log_V = logits_V.double().log_softmax(0)
        order = log_V.argsort(descending=True).tolist()
        assert set(kept) == set(order[: len(kept)]), "the most likely ones"
        assert mass == pytest.approx(float(log_V[list(kept)].logsumexp(0)), abs=1e-5)
        if "top_k" in cut:
            assert len(kept) <= cut["top_k"]
        if cut == {"top_p": 0.6}:
            assert mass >= -0.52
            assert len(kept) == 1 or float(log_V[order[: len(kept) - 1]].exp().sum()) < 0.6
        among = float(logits_V.double()[list(kept)].log_softmax(0)[list(kept).index(event.token)])
        assert event.logprobs.chosen - mass == pytest.approx(among, abs=1e-5)


def test_without_truncation_nothing_is_kept() -> None:
    for params in (TRACED, replace(TRACED, temperature=0, top_p=0.5), replace(TRACED, logit_bias=((4, 3.0),))):
        (events,) = run(engine_of(tiny_model()), [(prompt_of(30), params)])
        assert all(event.trace is not None and not any(event.trace.kept) for event in events)


def test_drafts_are_not_traced() -> None:
    jobs = [(prompt_of(60, i), replace(TRACED, seed=i, temperature=0)) for i in range(2)]
    engine = engine_of(tiny_model(), speculate=True)
    plain = replace(jobs[1][1], trace=False)
    traced, other = run(engine, [jobs[0], (jobs[1][0], plain)])
    pieces = joined(jobs[0][0], traced)
    Seen(engine.model, pieces.tokens[:-1]).check(pieces.whole(len(pieces.tokens) - 1))
    assert all(event.trace is None for event in other)


def test_rows_of_ids_are_small() -> None:
    (events,) = run(engine_of(tiny_model()), [(prompt_of(30), TRACED)])
    assert events[0].trace is not None
    kinds = {type(row) for rows in events[0].trace.entries.values() for row in rows}
    assert kinds <= {array, range}
    assert RequestOptions().cache_points == ()
