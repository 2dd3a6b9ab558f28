"""`dsv4 recipe`: make a model from nothing, stage after stage."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from dsv4.cli.flags import device_change
from dsv4.cli.recipe_chain import Chain, ChainRecord, ChainStage

ROOT = Path(__file__).parents[2]  # of the checkout: recipes are no part of the installed package


def recipe(
    name: str,
    *,
    folder: Path | None = None,
    stage: str | None = None,
    set: Annotated[Sequence[str], Parameter(negative=())] = (),
    device: str | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Run a whole chain (nano: from the tokenizer to a graded model), or go on with one that was stopped.

    Parameters
    ----------
    name
        A folder of recipes/ with a chain: nano.
    folder
        Where the stages work, each in a folder of its own. Default: as the chain says.
    stage
        Run this stage alone.
    set
        Change a setting of a stage: --set math.steps=10; repeat the flag for several.
    device
        Where the stages that train compute: cpu, cuda (a card; not run on one yet), cuda:N, or auto. Default: cpu.
    dry_run
        Print the plan with the time of each stage, and stop.
    """
    device_change("", device)
    chain = Chain.from_file(chain_file(name))
    changes = chain.changes(set)
    chosen = chain.stages if stage is None else (chain.stage(stage),)
    place = (folder or Path(chain.folder)).absolute()
    record = ChainRecord.read(place)
    commands = {one.name: one.call({"folder": str(place)}, changes.get(one.name, {}), device) for one in chosen}
    for one in chosen:
        record.check(one, commands[one.name])
        if not record.finished(one):
            _check_fields(one, commands[one.name])
    _print_plan(chain, record)
    if dry_run:
        return
    place.mkdir(parents=True, exist_ok=True)
    for one in chosen:
        if not record.finished(one):
            _run(one, commands[one.name], record)
            left = sum(record.left(later) for later in chain.stages)
            _say(f"{one.name}: done in {record.seconds(one) / 60:.1f} minutes; about {left:.0f} minutes of stages left")


def chain_file(name: str) -> Path:
    """Raises ValueError where there is no such chain."""
    file = ROOT / "recipes" / name / "chain" / "chain.toml"
    if not file.is_file():
        known = ", ".join(sorted(found.parents[1].name for found in ROOT.glob("recipes/*/chain/chain.toml")))
        raise ValueError(f"there is no chain {name} in {ROOT / 'recipes'}; there are {known or 'none'}")
    return file


def _check_fields(stage: ChainStage, command: list[str]) -> None:
    """Raise ValueError naming a stage whose recipe, with the changes of its command, has a wrong field: a late stage
    would tell it hours later."""
    if "dsv4.cli" not in command:
        return
    from dsv4.posttraining.distill_recipe import DistillRecipe
    from dsv4.posttraining.recipe import GrpoRecipe
    from dsv4.training.recipe import Recipe
    from dsv4.training.recipe_fields import check_fields, read_recipe

    def partial(raw: dict[str, Any]) -> None:
        """sft takes the rest from the model that it starts with, which is not made yet."""
        check_fields(Recipe, raw)

    kinds = {
        "train": Recipe.from_dict,
        "sft": partial,
        "grpo": GrpoRecipe.from_dict,
        "distill": DistillRecipe.from_dict,
    }
    verb, file = command[command.index("dsv4.cli") + 1 :][:2]
    changes = [after for word, after in pairwise(command) if word == "--set"]
    try:
        read_recipe(kinds[verb], ROOT / file, changes)
    except ValueError as error:
        raise ValueError(f"stage {stage.name}: {error}") from None


def _print_plan(chain: Chain, record: ChainRecord) -> None:
    for one in chain.stages:
        seconds = record.seconds(one)
        if record.finished(one):
            state = f"done in {seconds / 60:.1f} minutes"
        elif seconds:
            state = f"begun, {seconds / 60:.1f} of about {one.minutes:g} minutes"
        else:
            state = f"about {one.minutes:g} minutes"
        print(f"{one.name:12s} {state:36s} {one.about}")
    left = sum(record.left(one) for one in chain.stages)
    print(f"{record.folder}: about {left / 60:.1f} hours left of {sum(s.minutes for s in chain.stages) / 60:.1f}")


def _run(stage: ChainStage, command: list[str], record: ChainRecord) -> None:
    """Raises ValueError where the stage fails or makes nothing, KeyboardInterrupt where it was stopped."""
    words = [sys.executable if word == "{python}" else word for word in command]
    _say(f"{stage.name}: {' '.join(words)}")
    began = time.monotonic()
    record.write(stage, command, began, finished=False)
    stopped = threading.Event()

    def stop(number: int, frame: object) -> None:
        """The stage saves and ends; its end is awaited. Ctrl-C in a terminal reaches it by itself."""
        stopped.set()
        if number == signal.SIGTERM:
            child.terminate()

    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        child = subprocess.Popen(words, cwd=ROOT, env=os.environ | {"PYTHONPATH": path})
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    made = (record.folder / stage.makes).exists()
    record.write(stage, command, began, finished=code == 0 and made)
    if stopped.is_set() and code:
        _say("stopped; the same command goes on")
        raise KeyboardInterrupt
    if code:
        raise ValueError(f"stage {stage.name} ended with code {code}; the same command tries it again")
    if not made:
        raise ValueError(f"stage {stage.name} ended without {record.folder / stage.makes}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
