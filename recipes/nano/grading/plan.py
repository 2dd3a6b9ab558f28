"""How much is graded: settings that are checked at once, and the items they draw."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from recipes.nano.grading.abilities import Ability, abilities
from recipes.nano.items.item import Item
from recipes.nano.items.mix import draw
from recipes.nano.items.needles import LONGEST, SHORTEST

NEEDLES = {4096: 200, 65536: 48, 262144: 16, 1048576: 8}
OTHERS = ("needles", "small talk", "english")
_DRAWS = 1000  # of items that are there already, in a row, before the rest may repeat


@dataclass(frozen=True, slots=True)
class Plan:
    """items: of each ability. pass_items: of those with several samples. needles: questions by length of the text in
    tokens. needle_minutes: after which a length ends with what it has. only: rows, all if empty. mode: the numerics of
    the server. concurrent: requests at once."""

    items: int = 500
    pass_items: int = 200
    needles: Mapping[int, int] = field(default_factory=lambda: dict(NEEDLES))
    needle_minutes: float = 10.0
    seed: int = 20261126
    mode: Literal["fp32", "bf16", "release"] = "fp32"
    only: tuple[str, ...] = ()
    concurrent: int = 32

    def __post_init__(self) -> None:
        for name in ("items", "pass_items", "concurrent"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for length, count in self.needles.items():
            if not SHORTEST <= length <= LONGEST or count < 1:
                raise ValueError(f"needles: lengths must be in [{SHORTEST}, {LONGEST}], counts at least 1")
        if not self.needle_minutes > 0:
            raise ValueError(f"needle_minutes must be positive, got {self.needle_minutes}")
        if self.mode not in ("fp32", "bf16", "release"):
            raise ValueError(f"mode must be fp32, bf16 or release, got {self.mode}")
        if unknown := set(self.only) - {*(ability.name for ability in abilities()), *OTHERS}:
            raise ValueError(f"only: no row {', '.join(sorted(unknown))}; there are {', '.join(row_names())}")

    def wants(self, row: str) -> bool:
        return not self.only or row in self.only

    def abilities(self) -> list[Ability]:
        return [ability for ability in abilities() if self.wants(ability.name)]

    def count(self, ability: Ability) -> int:
        """Items of a row."""
        return min(self.pass_items, self.items) if ability.samples > 1 else self.items

    def draw(self, ability: Ability) -> list[Item]:
        """Held-out items of a row, its makers in turn, no question twice while a maker has others."""
        # rows of the same makers share their items, so that their figures compare
        rng = random.Random(f"{self.seed}/{','.join(ability.makers)}")
        makers, found, seen = list(ability.makers.values()), list[Item](), set[str]()
        for number in range(self.count(ability)):
            make = makers[number % len(makers)]
            for _ in range(_DRAWS):
                item = draw(make, rng, held_out=True)
                if item.question not in seen:
                    break
            seen.add(item.question)
            found.append(item)
        return found

    def to_dict(self) -> dict[str, Any]:
        """What a file of figures must agree in to be gone on with."""
        return {name: value for name, value in asdict(self).items() if name in ("items", "pass_items", "seed", "mode")}


def row_names() -> Iterator[str]:
    """Every row there is."""
    yield from (ability.name for ability in abilities())
    yield from OTHERS
