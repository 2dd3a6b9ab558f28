"""The report of an engine's state: requests, pages and slots, kept prefixes as a tree, uses of experts, drafts."""

import asyncio
from dataclasses import replace

import pytest

from dsv4.cache.prefix import ReusePolicy
from dsv4.engine import Engine, EngineService
from dsv4.engine.report import MOST_PREFIXES, bytes_by_kind, report_of
from dsv4.engine.validation import bounded
from dsv4.generation import EngineReport, FinishReason, Reporting, RequestOptions, SamplingParams
from dsv4.kernels import native
from dsv4.testing.tiny import tiny_draft_config, tiny_model
from tests.engine.test_trace import TRACED, engine_of, prompt_of, run

PLAIN = SamplingParams(max_tokens=12, temperature=0)


def balanced(report: EngineReport) -> bool:
    """Whether every page and slot is free, held by a request, or kept."""
    return all(
        p.free + p.running + p.kept == p.count and min(p.free, p.kept) >= 0 for p in (report.pages, report.slots)
    )


def test_requests_and_pools() -> None:
    engine = engine_of(tiny_model(), sequences=2)
    options = [RequestOptions(label=f"r{i}", owner="ann", priority=i % 2) for i in range(4)]
    for at, one in enumerate(options):
        engine.submit(prompt_of(100 + at, at), PLAIN, one)
    before = report_of(engine)
    assert [request.label for request in before.requests] == ["r1", "r3", "r0", "r2"]
    assert not any(request.running for request in before.requests)
    engine.step()
    report = report_of(engine)
    running = [request for request in report.requests if request.running]
    assert [request.label for request in running] == ["r1", "r3"]
    assert [request.prompt for request in running] == [101, 103]
    assert sum(request.cached for request in running) == 64
    assert all(request.pages == 1 and request.generated == 0 and request.limit == 12 for request in running)
    assert report.pages.running == report.slots.running == 2
    assert balanced(before)
    assert balanced(report)
    assert sum(report.cache_bytes.values()) == engine.cache.store.bytes
    while engine.busy:
        engine.step()
    after = report_of(engine)
    assert after.requests == ()
    assert after.pages.running == 0
    assert after.pages.kept > 0
    assert balanced(after)


def test_kept_prefixes_are_a_tree() -> None:
    engine = engine_of(tiny_model(), reuse=ReusePolicy(snapshots=16))
    first = prompt_of(200)
    run(engine, [(first, PLAIN)])
    other = engine.submit([*first[:150], *prompt_of(60, 5)], PLAIN, RequestOptions(owner="bob", cache_points=(150,)))
    while engine.busy:
        engine.step()
    found = report_of(engine).prefixes
    bob = bounded(RequestOptions(owner="bob")).owner
    assert {prefix.owner for prefix in found} == {bounded(None).owner, bob}
    for prefix in found:
        if prefix.parent is not None:
            above = found[prefix.parent]
            assert above.owner == prefix.owner
            assert above.length < prefix.length
    lengths = [(p.length, None if p.parent is None else found[p.parent].length) for p in found if p.owner == bob]
    assert sorted(lengths, key=str) == sorted([(150, None), (209, 150), (210 + other.generated - 1, 209)], key=str)
    assert len(found) <= MOST_PREFIXES


def test_a_request_may_leave_nothing_behind() -> None:
    engine = engine_of(tiny_model())
    engine.submit(prompt_of(200), PLAIN, RequestOptions(keep=False, cache_points=(100,)))
    while engine.busy:
        engine.step()
    assert report_of(engine).prefixes == ()
    assert engine.check_integrity()


@pytest.mark.parametrize(
    "fused", [pytest.param(True, marks=pytest.mark.skipif(not native.available(), reason="no kernels")), False]
)
def test_experts_are_counted(fused: bool) -> None:
    """Each token of each step is counted in every layer: those of a traced request, which tells its choices, too."""
    engine = engine_of(tiny_model(), fused=fused)
    (plain,) = run(engine, [(prompt_of(90), replace(TRACED, trace=False))])
    once = report_of(engine).experts
    assert set(once) == {spec.index for spec in engine.model.config.layers}
    (events,) = run(engine, [(prompt_of(90), TRACED)])
    assert [event.token for event in events] == [event.token for event in plain]
    twice = report_of(engine).experts
    for layer, counts in once.items():
        assert sum(counts) == (90 + len(plain) - 1) * engine.model.config.num_experts_per_tok
        told = [row for event in events if event.trace is not None for row in event.trace.experts[layer]]
        own = [0] * engine.model.config.n_routed_experts
        for row in told:
            for expert in row:
                own[expert] += 1
        assert [b - a for a, b in zip(counts, twice[layer], strict=True)] == own


def test_events_tell_their_drafts() -> None:
    model = tiny_model(tiny_draft_config())
    engine, plain = engine_of(model, speculate=True), engine_of(model)
    job = [(prompt_of(60), replace(PLAIN, max_tokens=60))]
    (drafted,), (alone,) = run(engine, job), run(plain, job)
    assert drafted == alone  # drafts change no event
    assert all(event.draft is None for event in alone)
    told = [event for event in drafted if event.draft is not None]
    assert 0 < len(told) <= engine.counts.drafted  # what follows a wrong draft is checked and has no event
    assert sum(event.draft == event.token for event in told) >= engine.counts.accepted
    assert report_of(engine).speculates


def test_a_service_reports_while_it_runs() -> None:
    service = EngineService(Engine(tiny_model(), context_length=600))

    async def use() -> None:
        assert isinstance(service, Reporting)
        labels = []
        options = RequestOptions(label="one")
        async for event in service.stream(prompt_of(40), SamplingParams(max_tokens=50, temperature=0), options):
            labels += [request.label for request in (await service.report()).requests]
            if event.finish is not None:
                assert event.finish in (FinishReason.STOP, FinishReason.LENGTH)
        assert "one" in labels
        cancelled = asyncio.ensure_future(service.report())
        await asyncio.sleep(0)
        cancelled.cancel()
        assert (await service.report()).requests == ()

    try:
        asyncio.run(use())
        assert service.failing is None
    finally:
        service.close()
    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(service.report())


def test_bytes_by_kind_name_the_kinds_of_layers() -> None:
    store = engine_of(tiny_model()).cache.store
    assert set(bytes_by_kind(store)) == {"window", "tails", "csa_entries", "hca_entries", "indexer_keys", "streams"}
