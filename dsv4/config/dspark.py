"""The draft head of the final weights, DSpark (arXiv 2607.05147): its sizes, and the keys of config.json for them.

The number of stages has no key of its own: each ratio after those of the layers is one stage.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsv4.config.ranges import number, shown

PREFIX = "dspark_"
_NUMBERS = {"block_size": (1, 64), "noise_token_id": (0, (1 << 22) - 1), "markov_rank": (1, 1 << 16)}
MOST_STAGES = 16


@dataclass(frozen=True, slots=True)
class DSpark:
    """A draft head. stages: its blocks (3 as released). block_size: tokens that it drafts in a round. noise_token_id:
    the token in the rows after the first. markov_rank: of the bias by the token before. target_layer_ids: the layers
    whose output it reads."""

    stages: int
    block_size: int
    noise_token_id: int
    markov_rank: int
    target_layer_ids: tuple[int, ...]

    def check(self, layers: int, vocabulary: int) -> None:
        """Raise ValueError for a field that does not fit a model of this many layers and tokens."""
        number("the number of draft stages", self.stages, int, 1, MOST_STAGES)
        for name, (low, high) in _NUMBERS.items():
            number(PREFIX + name, getattr(self, name), int, low, high)
        if self.noise_token_id >= vocabulary:
            raise ValueError(f"{PREFIX}noise_token_id must be below vocab_size {vocabulary}, got {self.noise_token_id}")
        ids = self.target_layer_ids
        if not ids or list(ids) != sorted(set(ids)) or not 0 <= ids[0] <= ids[-1] < layers:
            raise ValueError(
                f"{PREFIX}target_layer_ids must be ascending layer numbers in [0, {layers - 1}], got {shown(ids)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The keys of config.json."""
        ids = {PREFIX + "target_layer_ids": list(self.target_layer_ids)}
        return {PREFIX + name: getattr(self, name) for name in _NUMBERS} | ids


def read_dspark(raw: Mapping[str, Any], stages: int) -> DSpark | None:
    """The draft head of a parsed config; None if no key of it has a value. Raises ValueError naming the key."""
    given = {name: value for name, value in raw.items() if name.startswith(PREFIX)}
    if not any(given.values()):
        return None
    if not stages:
        raise ValueError(f"compress_ratios must end with a 0 for each draft stage ({PREFIX}* is set)")
    names = (*_NUMBERS, "target_layer_ids")
    missing = next((PREFIX + name for name in names if PREFIX + name not in given), None)
    if missing:
        raise ValueError(f"{missing} is missing")
    ids = given[PREFIX + "target_layer_ids"]
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise ValueError(f"{PREFIX}target_layer_ids must be a list of layer numbers, got {shown(ids)}")
    values = {name: int(number(PREFIX + name, given[PREFIX + name], int, *_NUMBERS[name])) for name in _NUMBERS}
    return DSpark(stages, **values, target_layer_ids=tuple(ids))
