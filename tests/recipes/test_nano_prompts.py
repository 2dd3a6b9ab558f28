"""Prompts of the generated items: what training shows before an answer, judged as an episode, with working tools."""

import asyncio
import json
import random

import pytest

from dsv4.encoding import Tokenizer
from dsv4.generation import FinishReason
from dsv4.posttraining.types import Effort
from recipes.nano.items.item import Item, draw
from recipes.nano.items.mix import makers
from recipes.nano.prompts import environments, prompt, tools_of
from tests.conftest import ROOT
from tests.recipes.test_grading import turns_of

MODES = [effort.value for effort in Effort]


@pytest.fixture(scope="module")
def codec() -> Tokenizer:
    return Tokenizer.load(ROOT / "models" / "nano")


@pytest.mark.parametrize("name", [name for name in makers() if not name.startswith("quick")])
@pytest.mark.parametrize("mode", MODES)
def test_right_answers_have_the_full_reward(name: str, mode: str, codec: Tokenizer) -> None:
    """The item of the same draw says its own words; tools answer it as in the item."""
    asked = prompt(random.Random(7), codec, {name: 1.0}, {mode: 1.0})
    item = _same_item(name)
    turns = dict(turns_of(item, Effort(mode), codec))
    assert asked.effort == mode
    assert asked.domain == item.domain
    assert json.loads(json.dumps(asked.task)) is not None

    async def play() -> float | None:
        episode, shown = environments(codec).start(asked), list(asked.tokens)
        while True:
            said = turns[tuple(shown)]
            more = await episode.turn(said, FinishReason.STOP)
            if more is None:
                return (await episode.verdict(FinishReason.STOP)).reward
            shown += [*said, *more.tokens]

    assert asyncio.run(play()) == 1.0


def _same_item(name: str) -> Item:
    rng = random.Random(7)
    rng.choices([name], [1.0])
    return draw(makers()[name], rng)


def test_a_wrong_call_gets_an_error_and_no_reward(codec: Tokenizer) -> None:
    asked = prompt(random.Random(1), codec, {"tools.known": 1.0}, arguments={"tools.known": {"turns": 1}})
    tools = {tool.name: tool for tool in tools_of(asked)}
    results = asked.task["results"]
    name, arguments, text = results[0]
    assert tools[name].run(arguments) == text
    assert tools[name].run({**arguments, "more": 1}) == "error: not found"
    # the same after a log was read again
    assert tools_of(asked)[0].run({"x": 1}) == "error: not found"


def test_held_out_prompts_are_others(codec: Tokenizer) -> None:
    rng = random.Random(0)
    options = {"weights": {"arithmetic": 1.0}}
    learned = {prompt(rng, codec, **options).key for _ in range(60)}
    held_out = {prompt(rng, codec, held_out=True, **options).key for _ in range(60)}
    assert not learned & held_out


def test_modes_come_as_often_as_asked(codec: Tokenizer) -> None:
    rng = random.Random(0)
    drawn = [prompt(rng, codec, {"state": 1.0}, {"high": 3.0, "max": 1.0}).effort for _ in range(200)]
    assert 120 <= drawn.count(Effort.HIGH) <= 180
    assert drawn.count(Effort.NON_THINK) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"efforts": {"much": 1}}, "efforts: much is none of"),
        ({"weights": {"sums": 1}}, "weights.sums"),
        ({"weights": {"state": 1}, "arguments": {"tools.known": {}}}, "arguments.tools.known: no such maker is drawn"),
    ],
)
def test_wrong_options_are_told(options: dict, message: str, codec: Tokenizer) -> None:
    with pytest.raises(ValueError, match=message):
        prompt(random.Random(0), codec, **options)
