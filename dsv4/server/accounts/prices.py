"""Prices in US dollars per million tokens, by the model that answered and the day.

The defaults are the official prices, doubled in the peak hours since 16 August 2026 (01-04 and 06-10 UTC, Monday to
Friday; Chinese holidays are ignored). Only official models have a price: others are free under every name that a client
uses. A file replaces or adds entries:

    [my-model]              # a model, a name that clients request, or `default` for models that are not listed
    hit = 0.022             # prompt tokens that came from the prefix cache
    miss = 0.66             # other prompt tokens
    output = 1.98           # sampled tokens
    peak = 2.0              # factor in peak hours, 1 if left out
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
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


# prices and the times from which they apply, the newest last
Course = tuple[tuple[datetime, Price], ...]
LAUNCH = datetime(2026, 4, 24, tzinfo=UTC)
AUGUST = datetime(2026, 8, 16, 16, tzinfo=UTC)  # peak hours begin
SEPTEMBER = datetime(2026, 9, 14, tzinfo=UTC)  # deepseek-v4-pro is billed as Flash
FREE = Price(0.0, 0.0, 0.0)
FLASH = Price(0.003, 0.15, 0.60, peak=2.0)
FLASH_COURSE: Course = ((LAUNCH, Price(0.0028, 0.14, 0.28)), (AUGUST, FLASH))
PRO_COURSE: Course = (
    (LAUNCH, Price(0.0145, 1.74, 3.48)),
    (AUGUST, Price(0.022, 0.66, 1.98, peak=2.0)),
    (SEPTEMBER, FLASH),
)
PUBLISHED: dict[str, Course] = {
    "deepseek-v4-flash": FLASH_COURSE,
    "deepseek-v4.1-flash": FLASH_COURSE,
    "deepseek-flash": FLASH_COURSE,
    "deepseek-v4-pro": PRO_COURSE,
    DEFAULT: ((LAUNCH, FREE),),
}


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices by name. An entry also applies to longer names that begin with it and a dash. Case is ignored.

    own: entries that apply to the name in the request, whichever model answers.
    """

    entries: Mapping[str, Course] = field(default_factory=lambda: PUBLISHED)
    own: frozenset[str] = frozenset()

    @classmethod
    def load(cls, file: Path) -> Self:
        """The published prices with those of a file. Raises FileNotFoundError, or ValueError naming what is wrong."""
        try:
            tables = tomllib.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file}: not a TOML file ({error})") from error
        own = {name.lower(): ((LAUNCH, _price(table, f"{file}: {name}")),) for name, table in tables.items()}
        return cls({**PUBLISHED, **own}, frozenset(own) - {DEFAULT})

    def cost(self, model: str, *, hit: int, miss: int, output: int, at: datetime, asked: str = "") -> float:
        """US dollars for tokens of `model` at the time `at` (UTC). asked: the name of the model in the request."""
        entry = _entry(asked, self.own) or _entry(model, self.entries) or DEFAULT
        course = self.entries[entry]
        # a time before all entries, from a wrong clock, has the first price
        price = next((price for since, price in reversed(course) if at >= since), course[0][1])
        dollars = (hit * price.hit + miss * price.miss + output * price.output) / 1e6
        return dollars * (price.peak if at.weekday() < SATURDAY and at.hour in PEAK_HOURS else 1.0)


def _entry(model: str, entries: Iterable[str]) -> str | None:
    """The longest entry that applies to `model`."""
    name = model.split("[")[0].lower()
    return max((entry for entry in entries if name == entry or name.startswith(f"{entry}-")), key=len, default=None)


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
