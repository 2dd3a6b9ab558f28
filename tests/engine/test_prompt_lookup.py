"""Looked-up drafts: the longest match, the bits of a run without drafts, no rows for a text without repetition."""

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv4.cache.prefix import ReusePolicy
from dsv4.config.drafts import LOOKUP, MOST_CHECKED, drafting
from dsv4.engine import Engine
from dsv4.engine.draft_pace import HeadRecord
from dsv4.engine.prompt_lookup import PairIndex, PromptLookup
from dsv4.engine.request import Request
from dsv4.generation import SamplingParams, TokenEvent
from dsv4.kernels import native
from dsv4.model.transformer import Transformer
from dsv4.testing.tiny import tiny_config, tiny_draft_config, tiny_model

TOKENS = 96
NATIVE = pytest.mark.skipif(not native.available(), reason=f"no native kernels: {native.why_not()}")
HEADS: dict[str, dict[str, Any]] = {"none": {}, "mtp": {"speculate": True}, "dspark": {"speculate": True}}


def longest(tokens: Sequence[int]) -> int:
    """Of the longest earlier occurrence of the last tokens, by trying every place; 0 if it is shorter than two."""
    last = len(tokens) - 1
    found = 0
    for end in range(last):
        length = 0
        while length <= end and tokens[end - length] == tokens[last - length]:
            length += 1
        found = max(found, length)
    return found if found > 1 else 0


@pytest.mark.parametrize("kinds", [3, 200])
def test_the_longest_match_is_found(kinds: int) -> None:
    """A text of few repetitions and one of many, past the size at which the table is made anew."""
    own = random.Random(kinds)
    tokens: list[int] = []
    index = PairIndex(tokens)
    while len(tokens) < 2500:
        start = own.randrange(len(tokens) + 1)
        tokens += [*tokens[start : start + own.randrange(9)], own.randrange(kinds)]
        index.extend(len(tokens) - 1)
        place, length = index.find()
        if length:
            assert length > 1
            assert tokens[place - length : place] == tokens[-length:]
        if len(tokens) % 50 < 9:
            # of many places only the latest are compared, so the longest may be an older one
            assert (length > 0) == (longest(tokens) > 0)
            assert length <= longest(tokens)
            if kinds == 200 and longest(tokens) > 4:
                assert length == longest(tokens)


def test_a_draft_repeats_what_followed_and_itself() -> None:
    tokens = [1, 2, 3, 4, 5, 6, 1, 2, 3]
    assert PromptLookup(tokens).draft(4)[0] == [4, 5, 6, 1]
    assert PromptLookup([7, 8, 9, 8, 9]).draft(5)[0] == [8, 9, 8, 9, 8]
    assert PromptLookup([1, 2, 3, 4]).draft(4) == ([], [])


def test_a_match_is_followed_and_lost() -> None:
    tokens = [*range(50), 10, 11]
    lookup = PromptLookup(tokens)
    for token in range(12, 20):
        assert lookup.draft(2)[0] == [token, token + 1]
        tokens.append(token)
        lookup.follow()
    sure = lookup.draft(1)[1][0]
    tokens += [90, 91]
    lookup.follow()
    assert lookup.draft(2) == ([], [])
    tokens += [30, 31]
    lookup.follow()
    assert lookup.draft(2)[0] == [32, 33]
    assert lookup.draft(2)[1][0] < sure  # a short match is worth less than a long one


def test_matches_that_are_never_continued_are_not_drafted() -> None:
    """Pairs come again, and what follows them is always something else."""
    tokens = [1, 2]
    lookup = PromptLookup(tokens)
    first = 0.0
    for other in range(10, 90):
        tokens += [other, 1, 2]
        lookup.follow()
        first = first or lookup.draft(8)[1][0]
    assert first > 0.4
    assert lookup.draft(8)[0] == [] or lookup.draft(8)[1][0] < 0.2


@cache
def model(head: str) -> Transformer:
    return tiny_model(tiny_draft_config() if head == "dspark" else tiny_config())


class Recorder:
    """An engine that checks every draft and remembers the logits that tokens were sampled from."""

    def __init__(self, head: str = "none", **options: Any) -> None:
        settings = {"context_length": 1024, "cache_tokens": 8192, "reuse": ReusePolicy(snapshots=0)} | options
        self.rows: dict[Request, list[Tensor]] = {}
        self.events: dict[Request, list[TokenEvent]] = {}
        self.engine = Engine(model(head), observer=self._seen, **HEADS[head], **settings)
        self.engine.ends = frozenset()
        if self.engine.runner.lookup is not None:
            self.engine.runner.lookup.lengths = lambda survivals: list(map(len, survivals))  # type: ignore[method-assign]

    def _seen(self, request: Request, logits_V: Tensor) -> None:
        self.rows.setdefault(request, []).append(logits_V.clone())

    def submit(self, prompt: list[int], answer: int, seed: int | None = 0, **params: Any) -> Request:
        temperature = {"temperature": 0.0} if seed is None else {"seed": seed}
        return self.engine.submit(prompt, SamplingParams(max_tokens=answer, **temperature, **params))

    def finish(self) -> None:
        while self.engine.busy:
            for request, event in self.engine.step():
                self.events.setdefault(request, []).append(event)
        assert self.engine.check_integrity()

    def bits(self, request: Request) -> Tensor:
        return torch.stack(self.rows[request])


def same(a: tuple[Recorder, Request], b: tuple[Recorder, Request]) -> None:
    assert a[1].tokens == b[1].tokens
    assert torch.equal(a[0].bits(a[1]), b[0].bits(b[1]))
    # a repeated prompt is reused or not by what was kept, which drafts do not change
    assert a[0].events[a[1]] == b[0].events[b[1]]


def prompt_of(length: int, seed: int = 0) -> list[int]:
    """Random tokens, the second half with parts of the first."""
    own = random.Random(seed)
    tokens = [own.randrange(TOKENS) for _ in range(length // 2 + 1)]
    while len(tokens) < length:
        start = own.randrange(len(tokens))
        tokens += tokens[start : start + 7]
    return tokens[:length]


@NATIVE
@pytest.mark.parametrize("head", HEADS)
def test_every_kind_of_rejection_at_every_border(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked-up drafts are replaced: right up to each place in turn, wrong from there. Windows, blocks and pages end
    among them, and a snapshot is made in the middle of a draft."""
    plain = Recorder(step_tokens=4096) if head != "dspark" else Recorder("dspark", step_tokens=4096)
    jobs = [(prompt_of(length, length), 60, length) for length in (4, 121, 254)]
    wanted = [plain.submit(*job) for job in jobs]
    plain.finish()
    texts = [request.tokens for request in wanted]
    rounds = [(size, right) for size in (1, 3, 5, LOOKUP) for right in range(0, size + 1, 2)]
    calls = iter(range(10**6))

    def draft(lookup: PromptLookup, most: int) -> tuple[list[int], list[float]]:
        known = lookup._tokens
        size, right = rounds[next(calls) % len(rounds)]
        text = next((text for text in texts if text[: len(known)] == known), known)
        true = text[len(known) : len(known) + min(size, most)]
        return [token if i < right else (token + 1) % TOKENS for i, token in enumerate(true)], [1.0] * len(true)

    monkeypatch.setattr(PromptLookup, "draft", draft)
    recorder = Recorder(head, lookup=LOOKUP, step_tokens=70, sequences=3, reuse=ReusePolicy("periodic", 256, 20))
    requests = [recorder.submit(*job) for job in jobs]
    recorder.finish()
    for request, other in zip(requests, wanted, strict=True):
        same((recorder, request), (plain, other))
    counts = recorder.engine.counts
    assert 0 < counts.accepted < counts.drafted
    assert counts.steps < 0.7 * sum(answer for _, answer, _ in jobs)
    # the kept prefixes of these answers serve a second turn
    again = recorder.submit(texts[1] + [5, 6], 12)
    recorder.finish()
    fresh = Recorder(head, step_tokens=4096)
    other = fresh.submit(texts[1] + [5, 6], 12)
    fresh.finish()
    assert again.reused >= len(texts[1]) - 1
    assert torch.equal(recorder.bits(again), fresh.bits(other))


class Odd:
    """A grammar: after an even token an odd one follows, after an odd one anything."""

    def __init__(self) -> None:
        self.even = False

    def start(self) -> "Odd":
        return Odd()

    def allowed(self) -> bytes | None:
        return bytes([0b10101010] * 13) if self.even else None

    def accept(self, token: int) -> None:
        self.even = token % 2 == 0


PARAMS: list[dict[str, Any]] = [
    {"seed": None},
    {"seed": 3, "top_p": 0.9},
    {"seed": None, "constraint": Odd()},
    {"seed": 4, "constraint": Odd(), "logprobs": True, "top_logprobs": 3},
    {"seed": None, "logit_bias": ((7, 5.0), (11, 5.0), (13, 4.9))},
    {"seed": None, "frequency_penalty": 0.8, "logit_bias": ((7, 9.0), (11, 9.0))},
    {"seed": 5, "stop_ids": (7,), "logit_bias": ((7, 3.0), (11, 3.0))},
    {"seed": None, "logprobs": True, "top_logprobs": 2, "presence_penalty": -0.5},
]


@NATIVE
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pages", [8192, 1024])
def test_answers_are_those_without_drafts(head: str, pages: int) -> None:
    """Batches, chunks, seeds, grammars, biases, penalties, stops and log-probabilities; with few pages answers are
    preempted and resumed. The events are equal, which leaves only `draft` out."""
    found = []
    for lookup in (0, LOOKUP):
        recorder = Recorder(
            head if lookup else "dspark" if head == "dspark" else "none",
            lookup=lookup,
            cache_tokens=pages,
            sequences=4,
            step_tokens=90,
            reuse=ReusePolicy("periodic", 256, 6),
        )
        answer = 40 if pages == 8192 else 150
        requests = [recorder.submit(prompt_of(60 + 40 * n, n), answer, **params) for n, params in enumerate(PARAMS)]
        recorder.finish()
        found.append((recorder, requests))
    for a, b in zip(found[0][1], found[1][1], strict=True):
        same((found[0][0], a), (found[1][0], b))
    counts = found[1][0].engine.counts
    assert counts.drafted > counts.accepted > 0
    assert (counts.preempted > 0) == (pages == 1024)


@NATIVE
def test_code_of_others_sees_no_drafts() -> None:
    """A hook that comes between two steps sees one row for each token, and drafts return when it goes."""
    recorder = Recorder(lookup=LOOKUP)
    engine, rows = recorder.engine, list[int]()
    request = recorder.submit(prompt_of(20), 120, None, logit_bias=((7, 90.0),))  # repeats itself
    while not request.drafts:
        engine.step()
    hook = model("none").blocks[0].register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    try:
        for _ in range(9):
            engine.step()
    finally:
        hook.remove()
    assert rows == [1] * 9
    before = engine.counts.accepted
    recorder.finish()
    assert engine.counts.accepted > before


@NATIVE
def test_a_text_without_repetition_checks_no_drafts() -> None:
    engine = Engine(model("none"), context_length=256, lookup=LOOKUP, reuse=ReusePolicy(snapshots=0))
    engine.ends = frozenset()
    request = engine.submit(list(range(40)), SamplingParams(max_tokens=50, temperature=0))
    unused = iter(range(41, 97))
    request.sampler.choose = lambda logits_V: next(unused)  # type: ignore[method-assign]
    while engine.busy:
        engine.step()
    assert engine.counts.drafted == 0
    assert engine.counts.steps == 50


def test_the_head_drafts_where_nothing_is_found() -> None:
    recorder = Recorder("mtp", lookup=LOOKUP)
    request = recorder.submit([5, 6, 7, 8, 9, 10, 11, 12, 5, 6], 30)
    said = [7, 8, 9, 10, 11, 12, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80]
    forced = iter([*said, 81, 82, 83])
    request.sampler.choose = lambda logits_V: next(forced)  # type: ignore[method-assign]
    sizes = []
    while recorder.engine.busy:
        recorder.engine.step()
        sizes.append(len(request.drafts))
    assert max(sizes) > 1  # looked up
    assert 1 in sizes[-12:]  # by the prediction block


def test_one_step_checks_a_bounded_number_of_drafts() -> None:
    engine = Engine(model("none"), context_length=256, sequences=8, lookup=LOOKUP)
    assert engine.runner.lookup is not None
    assert sum(engine.runner.lookup.lengths([[0.9] * LOOKUP] * 8)) == MOST_CHECKED


def test_options_are_checked() -> None:
    assert drafting("auto", on_card=False, native=True) == (False, LOOKUP)
    nobody = (("auto", True, True), ("auto", False, False), ("none", False, True))
    for choice, on_card, native_kernels in nobody:
        assert drafting(choice, on_card=on_card, native=native_kernels) == (False, 0)
    assert drafting("head", on_card=False, native=True) == (True, 0)
    assert drafting("both", on_card=True, native=False) == (True, LOOKUP)
    with pytest.raises(ValueError, match="draft must be one of auto, none, ngram, head, both, got 'mtp'"):
        drafting("mtp", on_card=False, native=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"lookup must be in \[0, 32\], got 33"):
        Engine(model("none"), context_length=64, lookup=33)


def test_the_first_token_does_not_wait_for_the_index() -> None:
    recorder = Recorder(lookup=LOOKUP)
    request = recorder.submit([1, 2, 1, 2], 3)
    recorder.engine.step()
    assert request.generated == 1
    assert request.lookup is None
    recorder.finish()
    assert request.lookup is not None


def test_drafts_that_no_step_checked_say_nothing_of_the_head() -> None:
    record = HeadRecord()
    engine = Engine(tiny_model(tiny_config()), context_length=64)
    checked, preempted = (engine.submit([1, 2], SamplingParams(max_tokens=8)) for _ in range(2))
    record.drafted([checked, preempted])
    checked.tokens.append(3)  # its draft was wrong
    wrong = record.update([checked])
    assert 0 < wrong < 1
    record.drafted([preempted])  # it waits; or its draft had no room
    assert record.update([]) == wrong
    record.drafted([checked])
    checked.tokens += [4, 5]
    assert record.update([checked]) > wrong
