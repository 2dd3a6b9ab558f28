"""Which prompts a step learns from: what is replaced, what is asked again, and in which order."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from dsv4.generation import FinishReason
from dsv4.posttraining.grpo import judge
from dsv4.posttraining.selection import PromptPool, Selected, compares, select
from dsv4.posttraining.settings import EffortSettings, PolicySettings, SelectionSettings
from dsv4.posttraining.types import Effort, Group, Prompt, Rollout
from tests.posttraining import runs

RIGHT, WRONG, MIXED, HARD = (1.0, 1.0), (0.0, 0.0), (1.0, 0.0), (1.0,) + (0.0,) * 15


def prompt(key: str) -> Prompt:
    return Prompt(key, (0, 5), "d", Effort.MAX, {"answer": (1, 2)})


def group(key: str, rewards: Sequence[float | None], length: int = 2) -> Group:
    asked = prompt(key)
    rollouts = [
        Rollout(asked, (7,) * n, (True,) * n, (-1.0,) * n, (0,) * n, FinishReason.STOP, reward)
        for n, reward in enumerate(rewards, start=length)
    ]
    return Group(asked, tuple(rollouts))


EMPTY = PromptPool()


def chosen(rewards: Mapping[str, Sequence[float]], wanted: int, pool: PromptPool = EMPTY, **settings: Any) -> Any:
    """What `select` gives, and the keys of each call of `ask`."""
    asked: list[list[str]] = []

    async def ask(prompts: Sequence[Prompt]) -> list[Group]:
        asked.append([each.key for each in prompts])
        return [group(each.key, rewards[each.key]) for each in prompts]

    candidates = [prompt(key) for key in rewards]
    made = SelectionSettings(**settings)
    return asyncio.run(select(candidates, pool, wanted, made, ask)), asked


def test_groups_that_compare_nothing_are_replaced_up_to_a_bound() -> None:
    rewards = {"a": RIGHT, "b": MIXED, "c": WRONG, "d": RIGHT, "e": MIXED, "f": MIXED, "g": MIXED}
    found, asked = chosen(rewards, 3, draws=4)
    assert asked == [["a", "b", "c"], ["d", "e"], ["f"]]
    assert [each.prompt.key for each in found.groups] == list("abcdef")
    assert chosen(rewards, 3, draws=2)[1] == [["a", "b", "c"], ["d", "e"]]
    assert chosen(rewards, 3)[1] == [["a", "b", "c"]]
    assert chosen(dict.fromkeys("abcdef", WRONG), 2, draws=3)[1] == [["a", "b"], ["c", "d"], ["e", "f"]]


def test_what_nothing_could_judge_compares_nothing() -> None:
    assert compares(group("a", (1.0, 0.0, None)))
    assert not compares(group("a", (1.0, None)))
    assert not compares(group("a", (1.0, float("nan"))))
    assert not compares(group("a", ()))


def test_lengths_alone_are_nothing_to_compare_where_prompts_are_selected() -> None:
    """Else all wrong answers of a group would only teach to be wrong sooner."""
    efforts = {Effort.MAX: EffortSettings(tokens=512, window=1, slope=0.1)}
    for rewards, learned in ((WRONG, 0), (MIXED, 2)):
        found = judge([group("a", rewards)], PolicySettings(), efforts, 0, before_penalty=True)
        assert len(found.samples) == learned
    assert len(judge([group("a", WRONG)], PolicySettings(), efforts, 0).samples) == 2


def test_prompts_of_the_right_difficulty_are_asked_again() -> None:
    settings = SelectionSettings(again=0.5)
    groups = [group("a", RIGHT), group("b", MIXED), group("c", WRONG), group("d", HARD), group("e", MIXED)]
    pool = PromptPool().after(groups, settings)
    assert [each.key for each in pool.first(9)] == ["b", "e"]  # d: 1 of 16
    found, asked = chosen(dict.fromkeys("bxyz", MIXED), 2, pool, again=0.5)
    assert asked == [["b", "x"]]
    assert (found.again, found.first) == (1, 1)
    later = pool.after(found.groups, settings)
    assert [each.key for each in later.first(9)] == ["e", "b", "x"]  # asked longest ago first
    assert [each.key for each in later.after([group("e", RIGHT)], settings).first(9)] == ["b", "x"]
    assert [each.key for each in later.after([], SelectionSettings(pool=2)).first(9)] == ["b", "x"]


def test_a_prompt_of_the_pool_is_what_json_makes_of_it() -> None:
    """In a run that was not stopped too, or its answers could be judged otherwise than those of a resumed one."""
    pool = PromptPool().after([group("a", MIXED)], SelectionSettings())
    assert pool.first(1) == [Prompt("a", (0, 5), "d", Effort.MAX, {"answer": [1, 2]})]


def test_the_reward_of_new_prompts_is_told_apart() -> None:
    groups = [group("a", MIXED), group("b", RIGHT), group("c", WRONG), group("d", MIXED)]
    told = Selected(groups, again=1, first=2).told(PromptPool())
    assert told == {"asked": 4, "redrawn": 1, "asked_again": 1, "pool": 0, "fresh_reward": 0.5}
    assert "fresh_reward" not in Selected(groups[:1], again=1, first=0).told(PromptPool())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draws": 0}, "selection.draws must be at least 1, got 0"),
        ({"pool": 0}, "selection.pool must be at least 1, got 0"),
        ({"again": -0.1}, r"selection.again must be in \[0, 1\], got -0.1"),
        ({"low": 1.0, "high": 0.5}, "selection.low must be at most selection.high, got 1.0 and 0.5"),
        ({"low": float("nan")}, "selection.low must be at most selection.high"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelectionSettings(**settings)


@pytest.mark.parametrize(("again", "prompts"), [(0.1, 4), (0.5, 1), (0.01, 32)])
def test_a_share_of_no_prompt_is_refused(again: float, prompts: int) -> None:
    rollouts = {"prompts": prompts, "group": 2}
    with pytest.raises(ValueError, match=rf"selection.again must be 0, or large enough .* {again} of rollouts.prompts"):
        runs.recipe(rollouts=rollouts, selection={"again": again})
    assert runs.recipe(rollouts=rollouts, selection={"again": 1 / prompts}).selection.used
    assert not runs.recipe(rollouts=rollouts, selection={"again": 0}).selection.used
