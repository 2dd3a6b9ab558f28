"""What one request causes ends that request, with its own error; its neighbours go on with the same bits."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from dsv4.engine import Engine, EngineService
from dsv4.engine.request import Request
from dsv4.generation import Completion, FinishReason, RequestOptions, SamplingParams, TokenEvent, collect
from dsv4.kernels import native
from dsv4.model.layers import Numerics
from dsv4.model.transformer import Transformer
from dsv4.testing.tiny import tiny_config, tiny_model

PATIENCE = 60.0
VOCABULARY = 97
DAMAGED = 31  # a token whose embedding is not finite
NUMERICS = {"fp32": Numerics(torch.float32), "release": Numerics(torch.bfloat16, simulate=True)}


def make(model: Transformer | None = None, **options: Any) -> Engine:
    settings = {"context_length": 512, "sequences": 4, "step_tokens": 64} | options
    engine = Engine(model or tiny_model(tiny_config()), **settings)
    engine.ends = frozenset()
    return engine


def finish(engine: Engine, *requests: Request) -> list[Completion]:
    events: dict[Request, list[TokenEvent]] = {request: [] for request in requests}
    while engine.busy:
        for request, event in engine.step():
            events[request].append(event)
    return [collect(iter(events[request])) for request in requests]


class Panic(BaseException):
    """What a panic in a Rust library looks like: not an Exception."""


class Grammar:
    """Allows anything until one of its methods raises or allows nothing."""

    def __init__(self, fails_in: str, error: BaseException | None = None, after: int = 2) -> None:
        self.fails_in, self.error, self.left = fails_in, error, after

    def start(self) -> "Grammar":
        if self.fails_in == "start":
            self._fail()
        return Grammar(self.fails_in, self.error, self.left)

    def allowed(self) -> bytes | None:
        if self.fails_in == "mask" and self.left <= 0:
            return bytes(13)
        if self.fails_in == "allowed":
            self._fail()
        return None

    def accept(self, token: int) -> None:
        self.left -= 1
        if self.fails_in == "accept":
            self._fail()

    def _fail(self) -> None:
        if self.error is not None and (self.left <= 0 or self.fails_in == "start"):
            raise self.error


NEIGHBOUR = SamplingParams(max_tokens=12, seed=5, logprobs=True, top_logprobs=2)


@pytest.mark.parametrize("speculate", [False, True])
@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (Grammar("allowed", RuntimeError("too many\nexpressions")), "RuntimeError: too many"),
        (Grammar("accept", Panic("symbols.len() < u16::MAX")), "Panic: symbols.len() < u16::MAX"),
        (Grammar("allowed", MemoryError()), "MemoryError: "),
        (Grammar("mask"), "the grammar allows no token here"),
    ],
    ids=["raises", "panics", "memory", "allows nothing"],
)
def test_a_grammar_that_fails_ends_its_own_answer(grammar: Grammar, message: str, speculate: bool) -> None:
    engine = make(speculate=speculate)
    (alone,) = finish(engine, engine.submit([3, 4, 5], NEIGHBOUR))
    engine.forget()
    bad = SamplingParams(max_tokens=12, seed=1, constraint=grammar)
    requests = engine.submit([3, 4, 5], NEIGHBOUR), engine.submit([6, 7], bad), engine.submit([3, 4, 5], NEIGHBOUR)
    one, failed, other = finish(engine, *requests)
    assert (failed.finish, failed.error) == (FinishReason.ERROR, message)
    assert len(failed.tokens) == 2 - (grammar.fails_in == "accept")  # what it had said stays said
    assert one == other == alone
    assert engine.counts.failed == 1
    assert engine.check_integrity()


def test_a_grammar_that_cannot_start_is_refused_before_the_queue() -> None:
    engine = make()
    for error in (RuntimeError("it is too large"), Panic("it is too large")):
        with pytest.raises(ValueError, match=f"constraint cannot be started: {type(error).__name__}: it is too large"):
            engine.submit([3], SamplingParams(constraint=Grammar("start", error)))
    with pytest.raises(KeyboardInterrupt):
        engine.submit([3], SamplingParams(constraint=Grammar("start", KeyboardInterrupt())))
    assert not engine.busy


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logit_bias", ((VOCABULARY, 1.0),)),
        ("logit_bias", ((-1, 1.0),)),
        ("logit_bias", ((3, 1.0), (10**30, 1.0))),
        ("logit_bias", ((10**6000, 1.0),)),
        ("stop_ids", (99999,)),
        ("stop_ids", (-1,)),
    ],
)
def test_token_ids_outside_the_vocabulary_are_refused_by_name(field: str, value: Any) -> None:
    engine = make()
    with pytest.raises(ValueError, match=rf"^{field} token ids must be in \[0, 97\), got ") as caught:
        engine.submit([3], SamplingParams(**{field: value}))
    assert len(str(caught.value)) < 200
    assert not engine.busy


def damaged_model(numerics: str, value: float) -> Transformer:
    model = tiny_model(tiny_config(), numerics=NUMERICS[numerics])
    with torch.no_grad():
        model.embed.weight[DAMAGED] = value
    return model


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("numerics", NUMERICS)
@pytest.mark.parametrize("impl", [None, "torch"])
def test_numbers_that_are_not_finite_end_their_sequence_and_no_other(
    impl: str | None, numerics: str, value: float
) -> None:
    if impl is None and not native.available():
        pytest.skip("no native kernels")
    clean = [[5] * 140, [6, 7, 8], [9] * 130]
    params = SamplingParams(max_tokens=6, seed=5, logprobs=True)
    model = damaged_model(numerics, value)
    for module in model.modules():
        if hasattr(module, "impl"):
            module.impl = impl
    engine = make(model, speculate=True)
    alone = [finish(engine, engine.submit(prompt, params))[0] for prompt in clean]
    engine.forget()
    prompt = [8] * 150 + [DAMAGED] + [8] * 60
    requests = [engine.submit(clean[0], params), engine.submit(prompt, params, RequestOptions(cache_points=(180,)))]
    requests += [engine.submit(prompt, params) for prompt in clean[1:]]
    first, broken, *others = finish(engine, *requests)
    assert broken.finish is FinishReason.ERROR
    assert broken.error is not None
    position = int(re.search(r"not finite \(NaN or infinity\) at position (\d+)", broken.error)[1])
    # torch multiplies what a query may not see by nothing, and NaN stays NaN: positions of the same chunk break too
    assert position == 150 if impl is None else 128 - 64 <= position <= 150
    assert broken.tokens == []
    if impl is None:
        assert [first, *others] == alone
    assert [answer.tokens for answer in (first, *others)] == [answer.tokens for answer in alone]
    # what came before the damage may be used again, nothing behind it is kept
    again = engine.submit([8] * 200, params)
    finish(engine, again)
    assert again.reused <= 150
    assert engine.check_integrity()


def test_a_draft_that_is_not_taken_may_be_as_damaged_as_it_likes() -> None:
    model = tiny_model(tiny_config())
    plain = make(model)
    params = SamplingParams(max_tokens=20, temperature=0, logit_bias=((DAMAGED, -100.0),))
    (wanted,) = finish(plain, plain.submit([3, 4], params))
    with torch.no_grad():
        model.embed.weight[DAMAGED] = float("nan")
    engine = make(model, speculate=True)
    real = engine.runner.draft

    def draft(*arguments: Any) -> None:
        real(*arguments)
        for request in engine._running:
            request.drafts = [DAMAGED] if request.drafts else []

    engine.runner.draft = draft  # type: ignore[method-assign]
    (got,) = finish(engine, engine.submit([3, 4], params))
    assert engine.counts.drafted > 0
    assert got.tokens == wanted.tokens


def failing_on(token: int, model: Transformer, layer: int) -> None:
    """A model that raises in the middle of a step, after some of its rows were written, where this token is in it."""
    seen: list[bool] = []
    model.embed.register_forward_hook(lambda m, inputs, out: seen.append(bool((inputs[0] == token).any())) and None)

    def hook(*arguments: Any) -> None:
        if seen[-1]:
            raise Panic("this token breaks the model")

    model.layers[layer].register_forward_hook(hook)


@pytest.mark.parametrize("speculate", [False, True])
@pytest.mark.parametrize("where", [150, 30])
def test_a_model_that_raises_ends_the_sequence_that_makes_it_raise(where: int, speculate: bool) -> None:
    clean = [[5] * 140, [6, 7, 8], [9] * 130]
    model = tiny_model(tiny_config())
    engine = make(model, speculate=speculate)
    alone = [finish(engine, engine.submit(prompt, NEIGHBOUR))[0] for prompt in clean]
    failing_on(DAMAGED, model, 2)
    bad = [8] * where + [DAMAGED] + [8] * 60
    never = {"logit_bias": ((DAMAGED, -100.0),)}
    params = replace(NEIGHBOUR, **never)  # type: ignore[arg-type]
    prompts = [clean[0], bad, *clean[1:]]
    first, broken, *others = finish(engine, *(engine.submit(prompt, params) for prompt in prompts))
    assert (broken.finish, broken.error, broken.tokens) == (
        FinishReason.ERROR,
        "Panic: this token breaks the model",
        [],
    )
    assert [answer.tokens for answer in (first, *others)] == [answer.tokens for answer in alone]
    if native.available():
        assert [first, *others] == alone
    assert engine.check_integrity()


@pytest.mark.parametrize("where", ["_grow", "_admit", "reuse", "shared"])
def test_a_failure_of_the_plan_ends_the_request_it_is_for(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, failed = make(), []

    def once(real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            if not failed:
                failed.append(True)
                raise RuntimeError("the plan is broken")
            return real(*arguments, **options)

        return run

    owner, name = {
        "_grow": (engine, "_grow"),
        "_admit": (engine, "_admit"),
        "reuse": (engine.cache.prefixes, "open"),
        "shared": (engine, "_scheduler_state"),
    }[where]
    prompt = [4] * 40
    if where == "reuse":
        finish(engine, engine.submit(prompt, NEIGHBOUR))
    monkeypatch.setattr(type(owner), name, once(getattr(type(owner), name)))
    requests = engine.submit(prompt, NEIGHBOUR), engine.submit([9, 8], NEIGHBOUR)
    first, second = finish(engine, *requests)
    assert (first.finish, first.error) == (FinishReason.ERROR, "RuntimeError: the plan is broken")
    assert second.finish is FinishReason.LENGTH
    assert engine.check_integrity()


def test_events_of_a_step_that_raises_come_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    engine = make(clock=lambda: now[0])
    late = engine.submit([3], NEIGHBOUR, RequestOptions(deadline=1.0))
    engine.step()
    other = engine.submit([4], NEIGHBOUR)
    real = engine.runner.run
    now[0] = 2.0

    def broken(works: list) -> None:
        raise RuntimeError

    monkeypatch.setattr(engine.runner, "run", broken)
    with pytest.raises(RuntimeError):
        engine.step()
    monkeypatch.setattr(engine.runner, "run", real)
    events = dict(engine.step())
    assert events[late].finish is FinishReason.ABORT
    assert events[other].finish is FinishReason.ERROR
    assert not engine.busy


def test_ids_beyond_the_tokenizer_are_never_chosen() -> None:
    engine = make(sampled_vocabulary=90)
    for temperature in (0, 2):
        params = SamplingParams(
            max_tokens=30, temperature=temperature, seed=1, logprobs=True, top_logprobs=20, logit_bias=((95, 100.0),)
        )
        (said,) = finish(engine, engine.submit([3, 95], params))
        assert len(said.tokens) == 30
        assert max(said.tokens) < 90
        assert all(token < 90 for scores in said.logprobs for token, _ in scores.top)
    with pytest.raises(ValueError, match=r"sampled_vocabulary must be in \[1, 97\], got 98"):
        make(sampled_vocabulary=98)


def run(work: Awaitable[Any]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(work, PATIENCE)

    return asyncio.run(bounded())


async def gather(service: EngineService, prompt: list[int], params: SamplingParams) -> Completion:
    return collect(iter([event async for event in service.stream(prompt, params)]))


def test_a_loop_that_always_fails_slows_down_tells_everybody_and_is_red_until_it_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = make()
    service, real, calls = EngineService(engine), engine._expire, []

    def broken() -> None:
        calls.append(True)
        raise RuntimeError("nothing works")

    monkeypatch.setattr(engine, "_expire", broken)
    got = run(gather(service, [3], NEIGHBOUR))
    assert (got.finish, got.error) == (FinishReason.ERROR, "the engine failed on this step")
    assert service.failing is not None
    assert "RuntimeError: nothing works" in service.failing
    assert service.counters()["failing"] == 1
    assert len(calls) < 20
    monkeypatch.setattr(engine, "_expire", real)
    assert len(run(gather(service, [3], NEIGHBOUR)).tokens) == 12
    assert service.failing is None
    service.close()
    assert service.failing is None
    assert engine.check_integrity()


def test_a_cancel_that_fails_does_not_end_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    service, real = EngineService(engine), engine.cache.keep

    def broken(*arguments: Any) -> None:
        raise Panic("no")

    monkeypatch.setattr(type(engine.cache), "keep", broken)

    async def work() -> None:
        stream = service.stream([3], SamplingParams(max_tokens=400))
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        assert len((await gather(service, [4], NEIGHBOUR)).tokens) == 12

    run(work())
    assert not engine.busy
    service.close()
    assert real is not None
