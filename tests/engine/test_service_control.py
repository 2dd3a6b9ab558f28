"""What an operator does with a running service: progress, priorities, deadlines, drain, new weights, counters."""

import asyncio
import threading
from collections.abc import Awaitable, Iterator
from typing import Any

import pytest
import torch

from dsv4.engine import Engine, EngineService
from dsv4.generation import (
    BusyError,
    ContextLengthError,
    FinishReason,
    RequestOptions,
    SamplingParams,
    TokenEvent,
    collect,
)
from dsv4.model.transformer import Transformer
from dsv4.testing.tiny import tiny_config, tiny_model

PATIENCE = 60.0
SHORT = SamplingParams(max_tokens=5, temperature=0)
LONG = SamplingParams(max_tokens=400, temperature=0)


def make(**options: Any) -> Engine:
    small = tiny_config(num_hidden_layers=2, compress_ratios=(4, 128, 0), n_routed_experts=2)
    engine = Engine(tiny_model(small), context_length=512, cache_tokens=2048, sequences=2, step_tokens=64, **options)
    engine.ends = frozenset()
    return engine


@pytest.fixture
def engine() -> Engine:
    return make()


@pytest.fixture
def service(engine: Engine) -> Iterator[EngineService]:
    service = EngineService(engine)
    yield service
    service.close()
    assert engine.check_integrity()


def run(work: Awaitable[Any]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(work, PATIENCE)

    return asyncio.run(bounded())


async def gather(service: EngineService, prompt: list[int], params: SamplingParams, **options: Any) -> list[TokenEvent]:
    return [event async for event in service.stream(prompt, params, RequestOptions(**options))]


def test_progress_tells_done_total_reused_and_seconds_to_go(service: EngineService) -> None:
    prompt = [3, 4, 5] * 60
    events = run(gather(service, prompt, SHORT, progress=True))
    steps = [event.progress for event in events if event.progress is not None]
    assert [step.done for step in steps] == [64, 128, 180]
    assert {(step.total, step.reused) for step in steps} == {(180, 0)}
    assert all(step.eta is not None and step.eta >= 0 for step in steps)
    again = run(gather(service, prompt, SHORT, progress=True))
    steps = [event.progress for event in again if event.progress is not None]
    assert [(step.done, step.reused, step.eta) for step in steps] == [(180, 179, 0.0)]
    assert collect(iter(again)).tokens == collect(iter(events)).tokens
    assert (collect(iter(events)).reused, collect(iter(again)).reused) == (0, 179)
    assert all(event.progress is None for event in run(gather(service, [9], SHORT)))


def test_a_deadline_ends_a_request_wherever_it_is() -> None:
    now = [0.0]
    engine = make(clock=lambda: now[0])
    running = [engine.submit([n], LONG, RequestOptions(deadline=5.0)) for n in (1, 2)]
    waiting = engine.submit([3], LONG, RequestOptions(deadline=5.0))
    patient = engine.submit([4], SHORT)
    engine.step()
    now[0] = 5.0
    ended = {request: event for request, event in engine.step() if event.finish is not None}
    assert set(ended) == {*running, waiting}
    assert {(e.finish, e.error) for e in ended.values()} == {(FinishReason.ABORT, "the deadline has passed")}
    while engine.busy:
        engine.step()
    assert patient.generated == 5
    assert engine.check_integrity()


def test_a_full_queue_is_busy_and_says_how_long_it_is() -> None:
    engine = make(queue=2)
    first, second = (engine.submit([n], SHORT) for n in (1, 2))
    with pytest.raises(BusyError, match="2 requests are waiting already") as caught:
        engine.submit([3], SHORT)
    assert caught.value.waiting == 2
    engine.step()
    engine.submit([3], SHORT)
    engine.cancel(first)
    engine.cancel(second)
    while engine.busy:
        engine.step()


def test_a_prompt_that_is_too_long_carries_both_numbers(service: EngineService) -> None:
    with pytest.raises(ContextLengthError, match="the prompt has 600 tokens, the context holds 512") as caught:
        run(gather(service, [1] * 600, SHORT))
    assert (caught.value.prompt_tokens, caught.value.context_length) == (600, 512)


def test_an_urgent_request_takes_a_running_ones_slot(engine: Engine) -> None:
    slow = [engine.submit([n], SamplingParams(max_tokens=40, temperature=0)) for n in (1, 2)]
    engine.step()
    urgent = engine.submit([3], SHORT, RequestOptions(priority=1))
    ended = []
    while engine.busy:
        ended += [request for request, event in engine.step() if event.finish is not None]
    assert ended[0] is urgent
    assert engine.counts.preempted == 1
    assert [r.generated for r in slow] == [40, 40]


def test_owners_share_nothing(service: EngineService) -> None:
    prompt = [7] * 150
    for owner, reused in (("a", 0), ("b", 0), ("a", 149), ("b", 149)):
        assert collect(iter(run(gather(service, prompt, SHORT, owner=owner)))).reused == reused


def test_what_a_cancelled_prompt_computed_is_kept(engine: Engine) -> None:
    request = engine.submit([8] * 200, SHORT)
    engine.step()
    engine.cancel(request)
    again = engine.submit([8] * 200, SHORT)
    while engine.busy:
        engine.step()
    assert again.reused == 64


def test_new_weights_wait_for_the_running_and_change_what_is_said(engine: Engine, service: EngineService) -> None:
    running_at_update: list[int] = []

    def apply(model: Transformer) -> None:
        running_at_update.append(engine.running)
        with torch.no_grad():
            model.head.weight.neg_()

    async def work() -> tuple[list[TokenEvent], list[TokenEvent], int]:
        before = await gather(service, [5], SHORT)
        task = asyncio.create_task(gather(service, [3], SamplingParams(max_tokens=60, temperature=0)))
        while not engine.running:
            await asyncio.sleep(0.001)
        version = asyncio.wrap_future(service.update_weights(apply))
        after = await gather(service, [5], SHORT)
        assert len(await task) == 60
        return before, after, await version

    before, after, version = run(work())
    assert running_at_update == [0]
    assert version == 1
    assert collect(iter(before)).tokens != collect(iter(after)).tokens
    assert collect(iter(after)).reused == 0
    assert service.counters()["weights_version"] == 1


def test_weights_that_cannot_be_applied_change_nothing(service: EngineService) -> None:
    def broken(model: Transformer) -> None:
        raise ValueError("wrong shape")

    with pytest.raises(ValueError, match="wrong shape"):
        service.update_weights(broken).result(PATIENCE)
    assert service.counters()["weights_version"] == 0
    assert len(run(gather(service, [3], SHORT))) == 5


def test_draining_lets_running_requests_finish_and_refuses_new_ones(engine: Engine) -> None:
    service = EngineService(engine)

    async def work() -> list[TokenEvent]:
        task = asyncio.create_task(gather(service, [3], SamplingParams(max_tokens=30, temperature=0)))
        while not engine.running:
            await asyncio.sleep(0.001)
        closer = threading.Thread(target=service.close, args=(PATIENCE,))
        closer.start()
        while not service._draining:
            await asyncio.sleep(0.001)
        with pytest.raises(RuntimeError, match="the engine is closed"):
            await gather(service, [4], SHORT)
        events = await task
        await asyncio.to_thread(closer.join, PATIENCE)
        return events

    events = run(work())
    assert events[-1].finish is FinishReason.LENGTH
    assert len(events) == 30
    assert not service._thread.is_alive()


def test_counters_count(service: EngineService) -> None:
    run(gather(service, [5] * 70, SHORT))
    run(gather(service, [5] * 70, SHORT))
    counters = service.counters()
    expected = {"requests_total": 2, "ended_total": 2, "prompt_tokens_total": 71, "reused_tokens_total": 69}
    expected |= {"generated_tokens_total": 10, "prefix_hits_total": 1, "failed_steps_total": 0, "running": 0}
    assert {name: counters[name] for name in expected} == expected
    assert counters["cache_bytes"] > 0
    assert counters["pages_free"] <= counters["pages"]
