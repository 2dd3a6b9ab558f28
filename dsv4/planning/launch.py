"""Commands that start a model on engines of other projects: published recipes from a table, and whether they fit.

The table `launch.toml` is data with sources and dates. A recipe is for a shape (Flash or Pro), a GPU and a goal; this
file chooses one, computes what each GPU must hold, and names the conflicts that are known.
"""

import datetime
import re
import shlex
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from dsv4.config import ModelConfig
from dsv4.config.released import SHAPES, released_config
from dsv4.model.accounting import kv_bytes
from dsv4.planning.files import ModelFiles
from dsv4.planning.weights import weight_bytes

TABLE = Path(__file__).with_name("launch.toml")
ENGINES = ("vllm", "sglang", "dynamo")
FIRST_PORT = 8001  # `dsv4 serve` in front listens on 8000
# what an engine needs for the grammars that `dsv4 serve --engine` sends it: those of calls are in llguidance's Lark
GRAMMARS = {"vllm": "--structured-outputs-config.backend guidance", "sglang": "--grammar-backend llguidance"}
MOST_GPUS = 100_000
USABLE = 0.9  # share of a GPU's memory for weights and cache; the rest is workspace
Goal = Literal["latency", "throughput"]


@dataclass(frozen=True, slots=True)
class LaunchRecipe:
    """One entry of the table; its fields are explained there."""

    engine: str
    model: str
    gpu: str
    gpus: int
    goal: Goal
    context: int
    dense: Literal["split", "replicated"]
    command: tuple[str, ...]
    source: str
    commit: str
    date: datetime.date
    parsers: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    since: str = ""
    draft: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Conflict:
    """What is known to go wrong, and where that is written."""

    when: tuple[str, ...]
    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Launch:
    """A recipe for a model. copies: how many of it fill the GPUs. need, room: bytes on each GPU for weights and one
    sequence of the recipe's context, and what it has for them. lines: of the command, with what `dsv4 serve` in front
    needs (a port, grammars of calls). parsers: flags to add where no `dsv4 serve` stands in front."""

    recipe: LaunchRecipe
    copies: int
    need: int
    room: int
    lines: tuple[str, ...]
    parsers: tuple[str, ...]
    conflicts: tuple[Conflict, ...]

    @property
    def fits(self) -> bool:
        """Whether each GPU holds its part."""
        return self.need <= self.room


@cache
def _table() -> dict[str, Any]:
    with TABLE.open("rb") as file:
        return tomllib.load(file)


def recipes() -> list[LaunchRecipe]:
    """All recipes of the table."""
    return [_recipe(row) for row in _table()["recipe"]]


def _recipe(row: dict[str, Any]) -> LaunchRecipe:
    lists: dict[str, Any] = {
        name: tuple(map(str.strip, row[name])) for name in ("command", "parsers", "env") if name in row
    }
    return LaunchRecipe(**{**row, **lists})


def shape_of(config: ModelConfig) -> str:
    """Which released shape a config has. Raises ValueError for another: nobody has published recipes for it."""
    for name in SHAPES:
        known = released_config(name)
        if (known.hidden_size, known.num_hidden_layers) == (config.hidden_size, config.num_hidden_layers):
            return name
    raise ValueError(
        f"no recipe is published for this shape ({config.num_hidden_layers} layers, width {config.hidden_size}): "
        "there are some for Flash and Pro; `dsv4 serve` runs any shape"
    )


def parse_gpus(text: str) -> tuple[int, str]:
    """The number and the name in `8xH200`. Raises ValueError naming the flag and what is known."""
    found = re.fullmatch(r"(\d{1,9})x(\w+)", text.strip())
    known = {name.lower(): name for name in _table()["gpus"]}
    if found is None or found[2].lower() not in known or not 1 <= int(found[1]) <= MOST_GPUS:
        raise ValueError(
            f"--gpus must be a number and a name like 8xH200 (1 to {MOST_GPUS:,}; {', '.join(known.values())}), "
            f"got {text[:40]!r}"
        )
    return int(found[1]), known[found[2].lower()]


def choose(engine: str, shape: str, gpus: tuple[int, str], goal: Goal) -> tuple[LaunchRecipe, list[str]]:
    """The published recipe for this hardware, and notes where it is not exactly what was asked for. Raises ValueError
    naming what is published."""
    count, name = gpus
    rows = [row for row in recipes() if (row.engine, row.model) == (engine, shape)]
    usable = [row for row in rows if row.gpu == name and row.gpus <= count]
    if not usable:
        known = ", ".join(dict.fromkeys(f"{row.gpus}x{row.gpu}" for row in rows)) or "none"
        raise ValueError(f"--gpus {count}x{name}: no recipe of {engine} for {shape} is published; there are: {known}")
    best = [row for row in usable if row.goal == goal] or usable
    row = max(best, key=lambda one: one.gpus)
    notes = (
        []
        if row.goal == goal
        else [f"none is published for {goal} on at most {count} {name}: this one is for {row.goal}"]
    )
    if left := count % row.gpus:
        notes.append(f"{left} of {count} GPUs are not used: the recipe takes {row.gpus}")
    return row, notes


def launch(files: ModelFiles, folder: str, recipe: LaunchRecipe, count: int) -> Launch:
    """The command of a recipe for a model, what each GPU must hold, and the conflicts that apply. count: GPUs."""
    config = files.config
    weights = weight_bytes(files, "release", predict=True)
    dense, experts = weights.mapped + weights.made, weights.experts_mapped + weights.experts_made
    each = dense if recipe.dense == "replicated" else dense // recipe.gpus
    # one key-value head cannot be split, so every GPU holds whole sequences
    need = each + experts // recipe.gpus + int(kv_bytes(config, recipe.context))
    head = "dspark" if config.dspark else "mtp" if config.num_nextn_predict_layers else ""
    draft = recipe.draft.get(head, [])
    lines = [*(part.replace("{model}", shlex.quote(folder)) for part in recipe.command), *map(str.strip, draft)]
    if recipe.engine in GRAMMARS:  # dynamo's frontend listens, not this worker, and `dsv4 serve` does not ask it
        lines += [GRAMMARS[recipe.engine], f"--port {FIRST_PORT}"]
    words = {recipe.engine, recipe.model, recipe.gpu, *([head] if draft else []), *(line.split()[0] for line in lines)}
    return Launch(
        recipe,
        count // recipe.gpus,
        need,
        int(USABLE * _table()["gpus"][recipe.gpu] * 1e9),
        (*recipe.env, *lines),
        recipe.parsers,
        tuple(known for known in _conflicts() if words.issuperset(known.when)),
    )


def _conflicts() -> Sequence[Conflict]:
    return [Conflict(tuple(row["when"]), row["text"], row["source"]) for row in _table()["conflict"]]
