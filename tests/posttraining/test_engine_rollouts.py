"""Rollouts of a real engine: choices are complete, killed ones go on, versions are those of the weights."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv4.engine import Engine, EngineService
from dsv4.engine.weights import EngineWeights
from dsv4.posttraining.rollout import RolloutRunner, RolloutSettings
from dsv4.posttraining.types import Group, Prompt
from dsv4.testing.tiny import tiny_model
from tests.posttraining.policies import END, Killed, Lengths, Mortal, run

SETTINGS = RolloutSettings(group=3, max_tokens=60, trace=True, top_p=0.95)


def prompts(count: int, length: int = 50) -> list[Prompt]:
    own = torch.Generator().manual_seed(1)
    rows = torch.randint(3, 97, (count, length), generator=own).tolist()
    return [Prompt(f"p{i}", tuple(row), "math") for i, row in enumerate(rows)]


@pytest.fixture
def service() -> Iterator[EngineService]:
    model = tiny_model()
    with torch.no_grad():
        model.head.weight[END] += 0.5 * model.head.weight[7:11].mean(0)
    service = EngineService(Engine(model, context_length=400, step_tokens=64, sequences=6))
    yield service
    service.close()


def batch(generator: Any, settings: RolloutSettings = SETTINGS, turns: int = 1, **more: Any) -> list[Group]:
    runner = RolloutRunner(generator, {"math": Lengths(turns)}, settings, end=END, **more)
    return run(runner.batch(prompts(3), 0))


@pytest.mark.parametrize("turns", [1, 3])
def test_every_position_is_traced_though_siblings_share_the_prompt(service: EngineService, turns: int) -> None:
    groups = batch(service, turns=turns)
    reused = service.counters()["reused_tokens_total"]
    assert reused >= 3 * 2 * 49, "siblings share the prompt"
    for group in groups:
        for rollout in group.rollouts:
            assert rollout.error is None
            trace = rollout.trace
            assert trace is not None
            length = len(rollout.prompt.tokens) + len(rollout.tokens) - 1
            assert (trace.first, trace.last) == (0, length)
            assert all(len(rows) == length for rows in (*trace.experts.values(), *trace.entries.values()))
            told = [kept is not None for kept in trace.kept[49:]]
            assert told == list(rollout.sampled)
            for kept, token, sampled in zip(trace.kept[49:], rollout.tokens, rollout.sampled, strict=True):
                assert not sampled or token in (kept or ())


def test_logprobs_are_those_of_the_distribution_that_was_sampled_from(service: EngineService) -> None:
    model = service._engine.model
    for group in batch(service):
        for rollout in group.rollouts:
            assert rollout.trace is not None
            tokens = torch.tensor([*rollout.prompt.tokens, *rollout.tokens])
            with torch.inference_mode():
                logits_TV = model.logits(model.hidden(tokens, model.pack([len(tokens)])))
            for i, (token, logprob) in enumerate(zip(rollout.tokens, rollout.logprobs, strict=True)):
                kept = list(rollout.trace.kept[49 + i] or ())
                among = logits_TV[49 + i, kept].double().log_softmax(0)[kept.index(token)]
                assert logprob == pytest.approx(float(among), abs=1e-5)


@pytest.mark.parametrize("turns", [1, 3])
def test_a_killed_batch_goes_on_in_another_engine(service: EngineService, tmp_path: Path, turns: int) -> None:
    expected = batch(service, turns=turns)
    for events in (40, 100, 45):
        with pytest.raises(Killed):
            batch(Mortal(service, [events], Killed), turns=turns, folder=tmp_path)  # pyrefly: ignore
        service._engine.forget()  # a new process has no prefixes
    assert batch(service, turns=turns, folder=tmp_path) == expected


def test_a_batch_is_the_same_with_and_without_traces(service: EngineService) -> None:
    whole = replace(SETTINGS, top_p=1.0)
    traced, plain = batch(service, whole), batch(service, replace(whole, trace=False))
    for a, b in zip(traced, plain, strict=True):
        assert [replace(rollout, trace=None) for rollout in a.rollouts] == list(b.rollouts)
        assert all(rollout.trace is not None and not any(rollout.trace.kept) for rollout in a.rollouts)


def test_tokens_carry_the_version_that_chose_them(service: EngineService) -> None:
    settings = replace(SETTINGS, group=2, trace=False, top_p=1.0, max_tokens=200)
    state = {name: value.clone() for name, value in service._engine.model.state_dict().items()}

    def versions(wait: bool) -> set[tuple[int, ...]]:
        weights = EngineWeights(service, wait=wait)

        async def publishing() -> list[Group]:
            runner = RolloutRunner(service, {"math": Lengths()}, settings, end=96, weights=weights)
            made = asyncio.create_task(runner.batch(prompts(2), 0))
            while service.counters()["generated_tokens_total"] - before < 40:
                await asyncio.sleep(0.001)
            await weights.publish(state, 7)
            return await made

        before = service.counters()["generated_tokens_total"]
        return {tuple(sorted(set(r.versions))) for group in run(publishing()) for r in group.rollouts}

    service._engine.ends = frozenset()
    assert versions(wait=False) >= {(0, 7)}
    assert all(len(found) == 1 for found in versions(wait=True))
