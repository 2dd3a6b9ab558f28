"""What an answer would have cost: US dollars per million tokens, by model.

The defaults are the official prices since 16 August 2026: twice as much in the peak hours (01-04 and 06-10 UTC,
Monday to Friday; Chinese holidays are not known here). A file replaces or adds entries:

    [deepseek-v4-pro]       # a model, or `default` for names that are not listed
    hit = 0.022             # prompt tokens that came from the prefix cache
    miss = 0.66             # other prompt tokens
    output = 1.98           # sampled tokens
    peak = 2.0              # factor in peak hours, 1 if left out
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Self

DEFAULT = "default"
PEAK_HOURS = (*range(1, 4), *range(6, 10))
SATURDAY = 5


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens outside the peak hours; `peak` is the factor within."""

    hit: float
    miss: float
    output: float
    peak: float = 1.0


FLASH = Price(0.003, 0.15, 0.60, peak=2.0)
PRO = Price(0.022, 0.66, 1.98, peak=2.0)
PUBLISHED = {DEFAULT: FLASH, "deepseek-v4-pro": PRO, "claude-opus": PRO}


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices by the name a request asks for; an entry also stands for longer names that begin with it and a dash."""

    entries: Mapping[str, Price] = field(default_factory=lambda: PUBLISHED)

    @classmethod
    def load(cls, file: Path) -> Self:
        """The published prices with those of a file. Raises FileNotFoundError, or ValueError naming what is wrong."""
        try:
            tables = tomllib.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file}: not a TOML file ({error})") from error
        return cls({**PUBLISHED, **{name: _price(table, f"{file}: {name}") for name, table in tables.items()}})

    def cost(self, model: str, *, hit: int, miss: int, output: int, at: datetime) -> float:
        """US dollars for so many tokens at the time `at` (UTC)."""
        price = self._of(model)
        dollars = (hit * price.hit + miss * price.miss + output * price.output) / 1e6
        return dollars * (price.peak if at.weekday() < SATURDAY and at.hour in PEAK_HOURS else 1.0)

    def _of(self, model: str) -> Price:
        name = model.split("[")[0]
        fitting = [entry for entry in self.entries if name == entry or name.startswith(f"{entry}-")]
        return self.entries[max(fitting, key=len) if fitting else DEFAULT]


def _price(table: Any, place: str) -> Price:
    names = [item.name for item in fields(Price)]
    if not isinstance(table, Mapping):
        raise ValueError(f"{place}: expected a table with {', '.join(names)}")
    for name in [*names[:3], *table]:
        value = table.get(name)
        if name not in names:
            raise ValueError(f"{place}.{name}: unknown, expected one of {', '.join(names)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise ValueError(f"{place}.{name}: must be a number of at least 0, got {value!r}")
    return Price(**{name: float(value) for name, value in table.items()})
