"""Rollouts over generators without a model: order, seeds, lost engines, limits, stale tokens."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsv4.generation import FinishReason, SamplingParams
from dsv4.posttraining.environment import More, Verdict
from dsv4.posttraining.foreign import ForeignFault
from dsv4.posttraining.rollout import EngineLostError, RolloutRunner, RolloutSettings, seed_of
from dsv4.posttraining.types import Group, Prompt
from dsv4.testing.stub import StubGenerator
from tests.posttraining.policies import END, Lengths, Mortal, babble, prompts, run, token_at

SETTINGS = RolloutSettings(group=3, max_tokens=400, concurrent=4)


def runner(generator: Any, environment: Any = None, settings: RolloutSettings = SETTINGS, **more: Any) -> RolloutRunner:
    return RolloutRunner(generator, {"math": environment or Lengths()}, settings, end=END, **more)


def test_a_group_has_all_rollouts_of_its_prompt() -> None:
    groups = run(runner(babble()).batch(prompts(4), 0))
    assert [group.prompt.key for group in groups] == ["math/0", "math/1", "math/2", "math/3"]
    for group in groups:
        assert len(group.rollouts) == 3
        assert len({rollout.tokens for rollout in group.rollouts}) == 3, "each rollout has a seed of its own"
        for rollout in group.rollouts:
            assert rollout.finished
            assert rollout.tokens[-1] == END
            assert rollout.reward == rollout.length == len(rollout.tokens)
            assert all(logprob < 0 for logprob in rollout.logprobs)


def test_tokens_depend_on_run_batch_prompt_and_index_alone() -> None:
    def tokens(groups: Sequence[Group]) -> dict[tuple[str, int], tuple[int, ...]]:
        return {(g.prompt.key, i): r.tokens for g in groups for i, r in enumerate(g.rollouts)}

    alone = RolloutSettings(group=2, max_tokens=400, concurrent=1)
    whole = tokens(run(runner(babble()).batch(prompts(4), 7)))
    part = tokens(run(runner(babble(), settings=alone).batch(prompts(4)[2:], 7)))
    assert part.items() <= whole.items()
    assert whole["math/2", 0] == tuple(
        token_at(seed_of(0, 7, "math/2", 0), 3 + i, 20) for i in range(len(whole["math/2", 0]))
    )
    for other in (8, 9):
        assert not set(whole.values()) & set(tokens(run(runner(babble()).batch(prompts(4), other))).values())
    assert len({seed_of(a, b, k, i) for a in range(3) for b in range(3) for k in "xy" for i in range(3)}) == 54


@pytest.mark.parametrize("where", ["turn", "verdict"])
def test_an_environment_that_does_not_answer_costs_its_rollout_alone(where: str) -> None:
    class Silent(Lengths):
        def start(self, prompt: Prompt) -> Any:
            episode = super().start(prompt)
            if prompt.key == "math/1":

                async def never(*_: Any) -> Any:
                    await asyncio.sleep(60)

                setattr(episode, where, never)
            return episode

    groups = run(runner(babble(), Silent(), replace(SETTINGS, environment=0.2)).batch(prompts(3), 0))
    for group in groups:
        wanted = "more than 0.2 s" if group.prompt.key == "math/1" else None
        for rollout in group.rollouts:
            assert (rollout.reward is None) == (wanted is not None)
            assert wanted is None or wanted in (rollout.error or "")


def test_groups_come_as_they_finish() -> None:
    slow = {10: 0.2, 11: 0.0}

    class Uneven(StubGenerator):
        async def stream(self, prompt: Any, params: Any, options: Any = None) -> Any:
            await asyncio.sleep(slow[prompt[2]])
            async for event in super().stream(prompt, params, options):
                yield event

    async def keys() -> list[str]:
        return [group.prompt.key async for group in runner(Uneven([5, END])).groups(prompts(2), 0)]

    assert run(keys()) == ["math/1", "math/0"]


def test_no_more_rollouts_than_asked_for_run_at_once_and_siblings_wait_for_the_prompt() -> None:
    running, most, first = 0, 0, []

    class Counting(StubGenerator):
        async def stream(self, prompt: Any, params: Any, options: Any = None) -> Any:
            nonlocal running, most
            running += 1
            most = max(most, running)
            try:
                async for event in super().stream(prompt, params, options):
                    first.append((prompt[2], params.seed))
                    yield event
            finally:
                running -= 1

    run(runner(Counting([5] * 9 + [END], delay=0.001), settings=replace(SETTINGS, concurrent=5)).batch(prompts(4), 0))
    assert most == 5
    for key in range(10, 14):
        seeds = [seed for k, seed in first if k == key]
        assert len(set(seeds[:2])) <= 2
        assert seeds[0] == seed_of(0, 0, f"math/{key - 10}", 0), "the first of the group computes the prompt"


@pytest.mark.parametrize("error", [RuntimeError, ConnectionError])
def test_a_lost_engine_is_asked_to_go_on_from_the_tokens(error: type[BaseException]) -> None:
    expected = run(runner(babble()).batch(prompts(3), 0))
    engine = Mortal(babble(), [5, 0, 30, 1], error)
    assert run(runner(engine).batch(prompts(3), 0)) == expected
    assert not engine.lives
    assert any(len(call.prompt) > 3 for call in engine.inner.calls), "prompts hold the tokens so far"


def test_an_engine_that_stays_away_stops_the_batch() -> None:
    engine = Mortal(babble(), [4] + [0] * 10_000, ConnectionError)
    with pytest.raises(EngineLostError, match=r"the engine is gone for 0 s \(the machine is gone\)"):
        run(runner(engine, settings=replace(SETTINGS, patience=0.2)).batch(prompts(3), 0))


def test_an_engine_that_fails_one_request_again_and_again_loses_only_that_rollout() -> None:
    seed = seed_of(0, 0, "math/1", 2)

    def script(prompt: Sequence[int], params: SamplingParams) -> list[int]:
        return [token_at(params.seed or 0, len(prompt) + i, 20) for i in range(2 if params.seed == seed else 3)]

    class Failing(StubGenerator):
        async def stream(self, prompt: Any, params: Any, options: Any = None) -> Any:
            bad = params.seed == seed
            async for event in super().stream(prompt, params, options):
                yield replace(event, finish=FinishReason.ERROR, error="bad weights") if bad and event.finish else event

    groups = run(runner(Failing(script)).batch(prompts(2), 0))
    lost = groups[1].rollouts[2]
    assert (lost.reward, lost.finish) == (None, FinishReason.ERROR)
    assert lost.error == "the engine failed 4 times: bad weights"
    assert len(lost.tokens) == 8, "every attempt went on from the tokens before"
    assert [len(group.rewards) for group in groups] == [3, 2]


def test_an_answer_is_cut_at_the_limit_of_the_rollout_or_the_context() -> None:
    endless = StubGenerator(lambda prompt, params: [5] * 1000, context_length=30)
    for limit, length in ((10, 10), (400, 27)):
        (group,) = run(runner(endless, settings=replace(SETTINGS, max_tokens=limit)).batch(prompts(1), 0))
        assert [(r.length, r.finish) for r in group.rollouts] == [(length, FinishReason.LENGTH)] * 3
    too_long = [Prompt("math/0", tuple(range(30)), "math")]
    (group,) = run(runner(endless).batch(too_long, 0))
    assert [(r.length, r.finish, r.reward) for r in group.rollouts] == [(0, FinishReason.ERROR, None)] * 3
    assert group.rollouts[0].error == "the prompt has 30 tokens, and the context 30"


def test_turns_of_the_environment_stand_between_those_of_the_policy() -> None:
    environment = Lengths(turns=3)
    (group,) = run(runner(babble(), environment).batch(prompts(1), 0))
    for rollout in group.rollouts:
        given = [token for token, sampled in zip(rollout.tokens, rollout.sampled, strict=True) if not sampled]
        assert given == [7, 8, 7, 8]
        assert [lp for lp, sampled in zip(rollout.logprobs, rollout.sampled, strict=True) if not sampled] == [0.0] * 4
        assert rollout.length == rollout.reward == len(rollout.tokens) - 4
        assert rollout.tokens.count(END) == 3
    assert len(environment.asked) == 9


def test_a_rollout_that_runs_out_of_tokens_between_turns_is_cut() -> None:
    settings = replace(SETTINGS, max_tokens=2)
    (group,) = run(runner(StubGenerator([5, END]), Lengths(turns=9), settings).batch(prompts(1), 0))
    assert [(r.tokens, r.finish) for r in group.rollouts] == [((5, END), FinishReason.LENGTH)] * 3
    full = StubGenerator([5, END], context_length=8)
    (group,) = run(runner(full, Lengths(turns=9, more=(7,) * 5)).batch(prompts(1), 0))
    assert [(r.tokens, r.finish) for r in group.rollouts] == [((5, END), FinishReason.LENGTH)] * 3


@pytest.mark.parametrize(
    ("verdict", "error"),
    [
        (Verdict(float("nan")), "the reward is nan, not a finite number"),
        (Verdict(float("inf")), "the reward is inf, not a finite number"),
        (Verdict(None), "the environment gave no reward"),
        (Verdict(None, error="no judge"), "no judge"),
        (Verdict("good"), "the reward is 'good', not a finite number"),  # pyrefly: ignore
        (Verdict(10**400), "the reward is 1000"),
        (Verdict(-1e300), r"the reward is -1e+300, out of range [-1e+09, 1e+09]"),
        (Verdict(1.0, {"x": "abc"}), "the metric x is 'abc', not a finite number"),  # pyrefly: ignore
        (Verdict(1.0, {"x": float("nan")}), "the metric x is nan, not a finite number"),
        (1.0, "the verdict must be a Verdict, the environment returned float"),
        (None, "the verdict must be a Verdict, the environment returned NoneType"),
        (KeyError("boom"), "the environment raised KeyError: 'boom'"),
        (ForeignFault("verifier number raised KeyError: 'x'"), "verifier number raised KeyError: 'x'"),
    ],
)
def test_what_cannot_be_judged_has_no_reward_and_the_run_goes_on(verdict: Any, error: str) -> None:
    class Broken(Lengths):
        def start(self, prompt: Prompt) -> Any:
            episode = super().start(prompt)
            if prompt.key != "math/0":
                return episode

            async def judge(finish: FinishReason) -> Verdict:
                if isinstance(verdict, Exception):
                    raise verdict
                return verdict

            episode.verdict = judge  # pyrefly: ignore
            return episode

    groups = run(runner(babble(), Broken()).batch(prompts(2), 0))
    for rollout in groups[0].rollouts:
        assert rollout.reward is None
        assert (rollout.error or "").startswith(error)
    assert groups[0].rewards == []
    assert len(groups[1].rewards) == 3


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), Fraction(1, 2), torch.tensor(0.5).item()])
def test_a_number_of_any_library_is_a_reward(number: Any) -> None:
    assert Verdict(number, {"x": number}).checked() == Verdict(0.5, {"x": 0.5})


@pytest.mark.parametrize("method", ["start", "turn", "replay"])
def test_an_environment_that_raises_costs_its_own_rollouts_alone(method: str, tmp_path: Path) -> None:
    class Broken(Lengths):
        def start(self, prompt: Prompt) -> Any:
            if prompt.key != "math/0":
                return super().start(prompt)
            if method == "start":
                raise KeyError("gone")
            episode = super().start(prompt)
            setattr(episode, method, lambda *args: {}["gone"])
            return episode

    if method == "replay":  # the first turns are in the log of a run that was killed
        lost = Mortal(babble(), [150] + [0] * 10_000, ConnectionError)
        with pytest.raises(EngineLostError):
            run(runner(lost, Lengths(turns=9), replace(SETTINGS, patience=0.1), folder=tmp_path).batch(prompts(2), 0))
    broken = Broken(turns=9)
    groups = run(runner(babble(), broken, folder=tmp_path).batch(prompts(2), 0))
    errors = [rollout.error for rollout in groups[0].rollouts if rollout.reward is None]
    assert errors
    assert set(errors) == {"the environment raised KeyError: 'gone'"}
    assert len(groups[1].rewards) == 3


def test_a_prompt_that_its_environment_does_not_take_stops_the_batch() -> None:
    class Picky(Lengths):
        def start(self, prompt: Prompt) -> Any:
            raise ValueError(f"prompt {prompt.key}: task.answer is missing")

    with pytest.raises(ValueError, match=r"prompt math/0: task\.answer is missing"):
        run(runner(babble(), Picky()).batch(prompts(1), 0))


def test_groups_with_tokens_of_old_weights_are_not_learned_from() -> None:
    class Weights:
        version = 0

        async def publish(self, weights: Any, version: int) -> None:
            raise NotImplementedError

    weights = Weights()

    class Publishing(Lengths):
        def start(self, prompt: Prompt) -> Any:
            episode = super().start(prompt)
            take = episode.turn

            async def turn(tokens: Sequence[int], finish: FinishReason) -> More | None:
                weights.version += 1
                return await take(tokens, finish)

            episode.turn = turn  # pyrefly: ignore
            return episode

    def group(behind: int | None) -> Group:
        weights.version = 5
        settings = RolloutSettings(group=1, max_tokens=400, behind=behind)
        made = runner(babble(), Publishing(turns=2), settings, weights=weights)
        return run(made.batch(prompts(1), 0))[0]

    (rollout,) = group(2).rollouts
    first = rollout.tokens.index(END) + 1
    assert rollout.versions == (5,) * (first + 2) + (6,) * (len(rollout.tokens) - first - 2)
    assert rollout.reward is not None
    (late,) = group(1).rollouts
    assert (late.reward, late.error) == (None, "stale: tokens of version 5, the newest is 7")
    assert late.tokens == rollout.tokens
    assert group(None).rollouts == (rollout,)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"group": 0}, "group must be at least 1, got 0"),
        ({"behind": -1}, "behind must be at least 0, got -1"),
        ({"top_p": 0.9}, "top_p, top_k and min_p need trace"),
        ({"temperature": 3.0}, r"temperature must be in \[0, 2\], got 3.0"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RolloutSettings(**fields)


def test_impossible_batches_are_refused() -> None:
    twice = [*prompts(1), *prompts(1)]
    with pytest.raises(ValueError, match="prompt math/0 is in the batch twice"):
        run(runner(babble()).batch(twice, 0))
    with pytest.raises(ValueError, match="prompt code/0: domain must be one of math, got 'code'"):
        run(runner(babble()).batch(prompts(1, "code"), 0))
