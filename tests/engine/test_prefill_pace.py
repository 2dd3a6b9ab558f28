"""Prompts beside decoding requests: the limit of a step by measured times, and what the engine does with it."""

import pytest

from dsv4.engine import Engine
from dsv4.engine.prefill_pace import LEAST_SECONDS, PrefillPace
from dsv4.generation import SamplingParams
from dsv4.testing.tiny import tiny_config, tiny_model

LONG, SHORT = [3 + position % 90 for position in range(200)], [5, 6, 7]


def learned(alone: float, each: float, *, rows: int = 8, slowdown: float = 2.0) -> PrefillPace:
    """After steps in which decoding takes `alone` seconds and a prompt token `each` more."""
    pace = PrefillPace(slowdown)
    pace.stepped(rows, 0, alone)
    for _ in range(20):
        tokens = pace.tokens(rows)
        assert tokens is not None
        pace.stepped(rows, tokens, alone + tokens * each)
    return pace


@pytest.mark.parametrize("alone", [0.02, 0.1, 3.0])
@pytest.mark.parametrize("slowdown", [1.5, 2.0, 5.0])
def test_a_step_takes_as_long_as_allowed(alone: float, slowdown: float) -> None:
    tokens = learned(alone, 0.0001, slowdown=slowdown).tokens(8)
    assert tokens is not None
    assert 0.7 * (slowdown - 1) * alone < tokens * 0.0001 < (slowdown - 1) * alone


def test_fast_steps_are_not_limited() -> None:
    tokens = learned(0.001, 0.0001).tokens(8)
    assert tokens is not None
    assert 0.7 * (LEAST_SECONDS - 0.001) < tokens * 0.0001 < LEAST_SECONDS - 0.001


def test_a_prompt_never_stands_still() -> None:
    pace = learned(0.02, 1.0)
    assert pace.tokens(8) == 1
    found = []
    for _ in range(300):
        tokens = pace.tokens(8)
        assert tokens is not None
        found.append(tokens)
        pace.stepped(8, tokens, 0.02 + tokens)
    # steps without prompts show how long they take now
    assert 1 <= found.count(0) <= 10


def test_an_interrupted_step_changes_little() -> None:
    pace = learned(0.1, 0.001)
    before = pace.tokens(8)
    pace.stepped(8, 50, 30.0)
    pace.stepped(8, 0, 30.0)
    assert pace.tokens(8) == before


def test_no_limit_without_decoding_requests_and_none_known() -> None:
    assert PrefillPace(2.0).tokens(0) is None
    assert PrefillPace(2.0).tokens(4) == 0  # a step without prompts is measured first
    assert learned(0.1, 0.001).tokens(0) is None


@pytest.mark.parametrize("slowdown", [1.0, 0.0, float("nan")])
def test_a_slowdown_is_more_than_one(slowdown: float) -> None:
    with pytest.raises(ValueError, match="slowdown must be more than 1"):
        PrefillPace(slowdown)


def make_engine(slowdown: float | None, sequences: int = 2) -> Engine:
    small = tiny_config(num_hidden_layers=2, compress_ratios=(4, 128, 0), n_routed_experts=2)
    engine = Engine(tiny_model(small), context_length=512, sequences=sequences, step_tokens=64, slowdown=slowdown)
    engine.ends = frozenset()
    return engine


class SlowClock:
    """Seconds by rows of the steps of an engine: 0.1 and 0.01 for each token of a prompt."""

    def __init__(self, engine: Engine) -> None:
        self.now, self.prompts = 0.0, [0]
        engine.clock = lambda: self.now
        inner = engine.runner.run

        def run(chunks):  # type: ignore[no-untyped-def]
            decoding = any(chunk.wanted == chunk.count for chunk in chunks)
            prompt = sum(chunk.count for chunk in chunks if chunk.wanted < chunk.count)
            self.prompts += [prompt] if decoding else []
            self.now += 0.1 + 0.01 * prompt
            return inner(chunks)

        engine.runner.run = run  # type: ignore[method-assign]


@pytest.mark.parametrize("slowdown", [None, 2.0])
def test_the_engine_keeps_to_it_and_the_tokens_are_the_same(slowdown: float | None) -> None:
    engine = make_engine(slowdown)
    clock = SlowClock(engine)
    first = engine.submit(SHORT, SamplingParams(max_tokens=100, temperature=0))
    for _ in range(4):
        engine.step()
    second = engine.submit(LONG, SamplingParams(max_tokens=4, temperature=0))
    while engine.busy:
        engine.step()
    assert max(clock.prompts) == 63 if slowdown is None else max(clock.prompts) <= 16
    plain = make_engine(None)
    for request, prompt in ((first, SHORT), (second, LONG)):
        again = plain.submit(prompt, request.params)
        while plain.busy:
            plain.step()
        assert again.tokens == request.tokens


def test_a_prompt_does_not_wait_for_requests_that_are_computed_alone() -> None:
    engine = make_engine(2.0, sequences=3)
    for _ in range(2):
        engine.submit(SHORT, SamplingParams(max_tokens=100, temperature=0)).suspect = True
    engine.step()
    prompt = engine.submit(LONG, SamplingParams(max_tokens=4, temperature=0))
    for _ in range(20):
        engine.step()
    assert prompt.cached > 0
