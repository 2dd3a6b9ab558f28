"""The abilities that are graded, as data: which items, in which modes, how often, and what is compared with what."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dsv4.posttraining.types import Effort
from recipes.nano.items import countdown, state
from recipes.nano.items.item import Item, Maker
from recipes.nano.items.mix import makers

THINKING, BOTH = (Effort.HIGH,), (Effort.HIGH, Effort.NON_THINK)
HARD_MOVES = 14  # of 16: the hardest part of state tracking


@dataclass(frozen=True, slots=True)
class Ability:
    """A row of the table. makers: of its items, drawn in turn. samples: answers to each item; more than one are drawn
    at temperature 1 and the item counts as right where one of them is. play: how an item is asked (`questions`, or
    `tools` for conversations that call)."""

    name: str
    makers: Mapping[str, Maker]
    efforts: tuple[Effort, ...] = THINKING
    samples: int = 1
    play: str = "questions"
    tags: Callable[[Item], tuple[str, ...]] = field(default=lambda item: ())


def _families(*names: str) -> dict[str, Maker]:
    return {name: make for name, make in makers().items() if name.partition(".")[0] in names}


def composite(item: Item) -> tuple[str, ...]:
    """Whether an item of arithmetic needs several steps: no single look gives its answer."""
    several = {
        "sum": item.level >= 1,  # three numbers or more
        "difference": item.level >= 1,
        "product": item.level >= 2,  # two digits each
        "sort": item.task == "sort" and len(item.answer) >= 5,
        "problem": True,
    }
    return ("composite",) if several.get(item.task, False) else ()


def abilities() -> tuple[Ability, ...]:
    """Every row but needles, small talk and plain English, which are no single questions."""
    search = _families("countdown")
    hard: dict[str, Maker] = {
        "state.swaps": partial(state.make_swaps, least=HARD_MOVES),
        "state.moves": partial(state.make_moves, least=HARD_MOVES),
        "countdown.countdown4": countdown.make_countdown4,
    }
    return (
        Ability("arithmetic", _families("arithmetic", "ordering", "problems"), BOTH, tags=composite),
        Ability("state", _families("state"), BOTH),
        Ability("countdown", search),
        Ability("countdown, pass@8", search, samples=8),
        Ability("hardest", hard, (Effort.HIGH, Effort.MAX)),
        Ability("tools", _families("tools"), BOTH, play="tools"),
        Ability("facts", _families("facts") | _families("english"), BOTH),
        Ability("plain questions", _families("plain"), BOTH),
        Ability("quick instructions", _families("quick")),
    )


# what the issue calls for; a row's mode and kind, the least share, and in words
@dataclass(frozen=True, slots=True)
class Bar:
    """A figure that should be reached. least, most: in percent; None = no bound."""

    row: str
    mode: str
    least: float | None
    most: float | None = None
    kind: str | None = None


BARS = (
    Bar("arithmetic", "high", 97),
    Bar("state", "high", 98),
    Bar("state", "non-think", None, 5),
    Bar("tools", "high", 92),
    Bar("needles", "4096", 97),
    Bar("needles", "65536", 95),
    Bar("needles", "262144", 90),
    Bar("needles", "1048576", 80),
)


def judged(bar: Bar, rows: Mapping[str, Mapping[str, Any]]) -> bool | None:
    """Whether a bar is reached; None where its row was not graded."""
    row = rows.get(bar.row, {}).get(bar.mode)
    if row is None or row["mean"] is None:
        return None
    value = 100 * row["mean"]
    return (bar.least is None or value >= bar.least) and (bar.most is None or value <= bar.most)


def missed(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[Bar]:
    """The bars that are not reached."""
    return (bar for bar in BARS if judged(bar, rows) is False)
