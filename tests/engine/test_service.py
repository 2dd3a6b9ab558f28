"""The service: streams for many callers, one engine thread that nothing takes down."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import pytest
import torch

from dsv4.engine import Engine, EngineService
from dsv4.engine import service as service_module
from dsv4.engine.runner import Chunk, Runner, StepOutput
from dsv4.generation import BusyError, FinishReason, SamplingParams, TokenEvent, TokenGenerator, collect
from dsv4.testing.tiny import tiny_config, tiny_model

PATIENCE = 60.0  # a deadlock fails instead of hanging; nothing is decided by time
LONG = SamplingParams(max_tokens=400, temperature=0)
SHORT = SamplingParams(max_tokens=5, temperature=0)


@pytest.fixture
def engine() -> Engine:
    small = tiny_config(num_hidden_layers=2, compress_ratios=(4, 128, 0), n_routed_experts=2)
    engine = Engine(tiny_model(small), context_length=512, cache_tokens=1024, sequences=4, step_tokens=64)
    engine.ends = frozenset()
    return engine


@pytest.fixture
def service(engine: Engine) -> Iterator[EngineService]:
    """Whatever happens in a test, afterwards the thread has ended and every place is free."""
    service = EngineService(engine)
    yield service
    service.close()
    assert not service._thread.is_alive()
    assert not engine.busy
    assert engine.check_integrity()


def run(work: Awaitable[Any]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(work, PATIENCE)

    return asyncio.run(bounded())


async def gather(service: EngineService, prompt: list[int], params: SamplingParams) -> list[TokenEvent]:
    return [event async for event in service.stream(prompt, params)]


def expected(engine: Engine, prompt: list[int], params: SamplingParams) -> list[int]:
    with torch.inference_mode():
        other = Engine(engine.model, context_length=512)
        other.ends = frozenset()
        return collect(other.generate(prompt, params)).tokens


def test_is_a_token_generator(service: EngineService) -> None:
    assert isinstance(service, TokenGenerator)
    assert service.context_length == 512


def test_a_stream_is_one_event_per_token_and_ends_with_its_reason(service: EngineService, engine: Engine) -> None:
    events = run(gather(service, [3, 4], SHORT))
    assert [event.finish for event in events] == [None] * 4 + [FinishReason.LENGTH]
    assert [event.token for event in events] == expected(engine, [3, 4], SHORT)


def test_concurrent_streams_say_what_each_says_alone(service: EngineService, engine: Engine) -> None:
    jobs = [([i + 3] * (1 + 20 * i), SamplingParams(max_tokens=5, seed=i)) for i in range(7)]

    async def all_of_them() -> list[list[TokenEvent]]:
        return await asyncio.gather(*(gather(service, *job) for job in jobs))

    for events, job in zip(run(all_of_them()), jobs, strict=True):
        assert collect(iter(events)).tokens == expected(engine, *job)


def test_several_event_loops_use_one_service(service: EngineService, engine: Engine) -> None:
    results: dict[int, list[TokenEvent]] = {}

    def caller(i: int) -> None:
        results[i] = run(gather(service, [i, i + 1], SHORT))

    threads = [threading.Thread(target=caller, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for i in range(3):
        assert collect(iter(results[i])).tokens == expected(engine, [i, i + 1], SHORT)


@pytest.mark.parametrize("prompt", [[], [97], [1] * 512])
def test_a_refused_prompt_is_a_value_error(service: EngineService, prompt: list[int]) -> None:
    with pytest.raises(ValueError, match="prompt"):
        run(gather(service, prompt, SHORT))
    assert len(run(gather(service, [3], SHORT))) == 5


def test_a_prompt_of_the_wrong_type_does_not_end_the_engine(service: EngineService) -> None:
    for wrong in (["a"], [3, None], [1.5]):
        with pytest.raises(ValueError, match="prompt token ids must be integers"):
            run(gather(service, wrong, SHORT))  # type: ignore[arg-type]
    assert len(run(gather(service, [3], SHORT))) == 5


async def first_event(stream: AsyncIterator[TokenEvent]) -> TokenEvent:
    return await anext(stream)


def test_closing_a_stream_cancels_its_request(service: EngineService, engine: Engine) -> None:
    async def work() -> None:
        stream = service.stream([3], LONG)
        await first_event(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        # commands run in order: by the end of another request the cancelled one is gone
        await gather(service, [4], SHORT)
        assert engine.check_integrity()
        assert not engine.busy

    run(work())


@pytest.mark.parametrize("wait", [0, 1], ids=["before admission", "while running"])
def test_a_cancelled_caller_cancels_its_request(service: EngineService, engine: Engine, wait: int) -> None:
    async def work() -> None:
        task = asyncio.create_task(gather(service, [3], LONG))
        await asyncio.sleep(0)
        if wait:
            await gather(service, [5], SHORT)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gather(service, [4], SHORT)
        assert not engine.busy

    run(work())


def test_a_caller_whose_loop_is_gone_is_cancelled_and_the_engine_goes_on(
    service: EngineService, engine: Engine
) -> None:
    loop, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    stream, unread = service.stream([3], LONG), service.stream([4], LONG)
    loop.run_until_complete(asyncio.wait_for(first_event(stream), PATIENCE))
    other.run_until_complete(asyncio.wait_for(first_event(unread), PATIENCE))
    loop.close()
    assert len(run(gather(service, [5], SHORT))) == 5
    other.run_until_complete(unread.aclose())  # type: ignore[attr-defined]
    other.close()
    assert len(run(gather(service, [6], SHORT))) == 5
    assert not engine.busy
    del stream


def test_a_refusal_to_a_loop_that_is_gone_is_dropped(
    service: EngineService, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, entered, closed = asyncio.new_event_loop(), threading.Event(), threading.Event()

    def slow(*arguments: Any) -> object:
        entered.set()
        assert closed.wait(PATIENCE)
        raise BusyError(1)

    real = engine.enter
    monkeypatch.setattr(engine, "enter", slow)
    stream = service.stream([3], SHORT)

    async def ask() -> None:
        task = asyncio.ensure_future(first_event(stream))
        await asyncio.to_thread(entered.wait, PATIENCE)
        task.cancel()

    loop.run_until_complete(ask())
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    monkeypatch.setattr(engine, "enter", real)
    closed.set()
    assert len(run(gather(service, [3], SHORT))) == 5


def fail(engine: Engine, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Steps fail so many times once two requests run."""
    real, failed = engine.runner.run, []

    def forward(works: list) -> Any:
        if (failed or len(engine._running) == 2) and len(failed) < times:
            failed.append(True)
            raise RuntimeError("out of something")
        return real(works)

    monkeypatch.setattr(engine.runner, "run", forward)


@pytest.mark.parametrize("times", [1, 3])
def test_a_failed_step_is_repeated_for_each_request_and_the_service_goes_on(
    times: int,
    service: EngineService,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    alone = [[event.token for event in run(gather(service, [n], LONG))] for n in (3, 4)]
    fail(engine, monkeypatch, times)

    async def work() -> None:
        both = await asyncio.gather(gather(service, [3], LONG), gather(service, [4], LONG))
        if times == 1:
            assert [[event.token for event in events] for events in both] == alone
        else:
            for events in both:
                assert events[-1].token is None
                assert events[-1].finish is FinishReason.ERROR
                assert events[-1].error == "RuntimeError: out of something"
        assert len(await gather(service, [5], SHORT)) == 5
        assert not engine.busy

    run(work())
    assert "out of something" in "".join(capfd.readouterr())


def test_close_ends_every_stream_with_abort(engine: Engine) -> None:
    service = EngineService(engine)

    async def work() -> None:
        streams = [service.stream([i], LONG) for i in range(6)]  # some of them wait for a place
        readers = [asyncio.create_task(_all(stream)) for stream in streams]
        while len(engine._running) + len(engine._waiting) < 6:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(service.close)
        for events in await asyncio.gather(*readers):
            assert events[-1] == TokenEvent(None, FinishReason.ABORT)
            assert [event.finish for event in events[:-1]] == [None] * (len(events) - 1)
        with pytest.raises(RuntimeError, match="the engine is closed"):
            await gather(service, [3], SHORT)

    run(work())
    assert engine.check_integrity()


async def _all(stream: AsyncIterator[TokenEvent]) -> list[TokenEvent]:
    return [event async for event in stream]


def test_close_twice_is_close_once(engine: Engine) -> None:
    service = EngineService(engine)
    service.close()
    service.close()
    assert not service._thread.is_alive()


def test_a_step_wakes_a_loop_once(service: EngineService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv4.engine.service.TURN_SECONDS", 0.0)
    medium = SamplingParams(max_tokens=200, temperature=0)  # all three fit into the cache
    batches: list[list[Any]] = []
    deliver = service_module._deliver

    def seen(batch: list[Any]) -> None:
        batches.append(batch)
        deliver(batch)

    monkeypatch.setattr(service_module, "_deliver", seen)

    async def all_from_one_step() -> list[list[TokenEvent]]:
        reached, gate = threading.Event(), threading.Event()

        def hold() -> None:
            reached.set()
            gate.wait(PATIENCE)

        service._command(hold)
        await asyncio.to_thread(reached.wait, PATIENCE)
        answers = [asyncio.ensure_future(gather(service, [5, 6, n], medium)) for n in range(3)]
        while len(service._commands) < 3:
            await asyncio.sleep(0.001)
        gate.set()
        return await asyncio.gather(*answers)

    answers = run(all_from_one_step())
    assert [len(events) for events in answers] == [200] * 3
    assert [len(batch) for batch in batches] == [3] * 200


def test_tokens_of_fast_steps_come_together(service: EngineService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv4.engine.service.TURN_SECONDS", 3600.0)
    sizes: list[int] = []
    deliver = service_module._deliver
    monkeypatch.setattr(service_module, "_deliver", lambda batch: (sizes.append(len(batch)), deliver(batch)))
    events = run(gather(service, [5, 6, 7], SHORT))
    assert [event.token for event in events] == expected(service._engine, [5, 6, 7], SHORT)
    # the first token at once, the others with the last
    assert sizes == [1, 4]


@pytest.mark.parametrize("fused", [None, False], ids=["as it can", "op by op"])
def test_tokens_are_sent_while_the_next_step_computes(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, fused: bool | None
) -> None:
    """Only the last ones are sent between two steps: then no step follows."""
    monkeypatch.setattr("dsv4.engine.service.TURN_SECONDS", 0.0)
    computing, sent = [False], []
    runner = Runner(engine.model, engine.cache.store, predict=False, fused=fused)
    compute, wake = runner.run, service_module._in_loop

    def run_step(chunks: list[Chunk]) -> StepOutput:
        computing[0] = True
        try:
            return compute(chunks)
        finally:
            computing[0] = False

    def woken(loop: asyncio.AbstractEventLoop, call: Any, *arguments: Any) -> bool:
        sent.append((len(arguments[0]), computing[0]))
        return wake(loop, call, *arguments)

    monkeypatch.setattr(runner, "run", run_step)
    monkeypatch.setattr(service_module, "_in_loop", woken)
    engine.runner = runner
    service = EngineService(engine)
    try:
        assert len(run(gather(service, [5, 6, 7], SHORT))) == 5
    finally:
        service.close()
    assert sent == [(1, True)] * 4 + [(1, False)]


def test_no_token_is_held_while_the_engine_does_something_else(
    service: EngineService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsv4.engine.service.TURN_SECONDS", 3600.0)
    reached, gate, counts = threading.Event(), threading.Event(), service._engine.counts

    def slow() -> None:  # new weights, or a long prompt
        reached.set()
        gate.wait(PATIENCE)

    async def seen() -> tuple[int, int]:
        found: list[TokenEvent] = []

        async def read() -> None:
            async for event in service.stream([5, 6, 7], LONG):
                found.append(event)

        reading = asyncio.ensure_future(read())
        while counts.generated_tokens < 3:
            await asyncio.sleep(0.001)
        service._command(slow)
        await asyncio.to_thread(reached.wait, PATIENCE)
        for _ in range(5):
            await asyncio.sleep(0.01)
        said = len(found), counts.generated_tokens
        gate.set()
        await reading
        return said

    told, generated = run(seen())
    assert told == generated


def test_held_tokens_come_before_an_abort(service: EngineService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv4.engine.service.TURN_SECONDS", 3600.0)

    async def closed() -> list[TokenEvent]:
        answer = asyncio.ensure_future(gather(service, [5, 6, 7], LONG))
        while service._engine.counts.generated_tokens < 3:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(service.close)
        return await answer

    events = run(closed())
    assert events[-1].finish in (FinishReason.ABORT, FinishReason.LENGTH)
    tokens = [event.token for event in events if event.token is not None]
    assert len(tokens) >= 3
    assert tokens == expected(service._engine, [5, 6, 7], LONG)[: len(tokens)]


def test_the_last_token_does_not_wait_for_new_weights(service: EngineService, engine: Engine) -> None:
    """An update waits for the running answer, and a further request for the update."""
    ended, told = threading.Event(), list[bool]()

    async def first() -> None:
        await gather(service, [5, 6, 7], LONG)
        ended.set()

    async def work() -> list[TokenEvent]:
        answer = asyncio.create_task(first())
        while not engine._running:
            await asyncio.sleep(0.001)
        updated = service.update_weights(lambda model: told.append(ended.wait(PATIENCE)))
        events = await gather(service, [5], SHORT)
        assert await asyncio.wrap_future(updated) == 1
        await answer
        return events

    assert len(run(work())) == 5
    assert told == [True]
