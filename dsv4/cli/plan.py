"""`dsv4 plan`: what a model needs on this machine and how it would run, before anything is loaded or downloaded."""

import json as json_format
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from dsv4.cli.engine_flags import EngineFlags, SizeFlag, naming_flags
from dsv4.cli.flags import to_stderr
from dsv4.hub import title

if TYPE_CHECKING:
    from dsv4.config import ModelConfig
    from dsv4.planning.files import ModelFiles
    from dsv4.planning.rates import Rates

DEFAULT_ENGINE = EngineFlags()


def plan(
    folder: str | None = None,
    *,
    free: SizeFlag = None,
    json: bool = False,
    engine: Annotated[EngineFlags, Parameter(name="*")] = DEFAULT_ENGINE,
) -> None:
    """Print how a model would run here: numerics, memory for weights, experts and cache, bytes read per token, and the
    most tokens per second that this allows. Takes about a second of measurement; loads nothing. Exits with 1 for a
    model that cannot run.

    The flags of the engine are those of serve, chat, generate and bench. Flags that change no memory change nothing.

    Parameters
    ----------
    folder
        Checkpoint folder or the name of a pulled model; flash, pro, flash-0731 and pro-0813 work before they are
        pulled. Default: the bundled model.
    free
        Plan for this much free memory (16GiB) in place of what is free here.
    json
        Print one JSON object.
    """
    from dsv4.planning.memory import free_memory, parse_memory
    from dsv4.planning.placement import place
    from dsv4.planning.plan import make_plan
    from dsv4.planning.rates import measure
    from dsv4.planning.text import long_lines
    from dsv4.planning.topology import read_topology

    room = engine.card[1] if free is None else parse_memory(free, "--free")
    request = engine.request(room)
    files = find_files(folder, draft=engine.drafting[0])
    with naming_flags():
        made = make_plan(files, request, room)
        placement = place(made, read_topology(), engine.numa, engine.threads or default_threads())
    # what is measured is the CPU's memory, which says nothing of a card
    rates = None if request.on_card else measure(files.largest, free_memory())
    if json:
        speed = {} if rates is None else _speed(rates, rates.most_tokens(made))
        print(json_format.dumps(made.to_dict() | {"numa": placement.to_dict()} | speed))
        return
    for line in long_lines(made, rates, placement.why):
        print(line)


def find_files(named: str | None, *, draft: bool = False) -> "ModelFiles":
    """The model by a folder's headers; a released one that was not pulled, by its config. draft: with its draft head,
    if it has one."""
    from dsv4.checkpoint import open_folder
    from dsv4.cli.folders import model_folder
    from dsv4.cli.inspect import find_config
    from dsv4.config.released import KNOWN
    from dsv4.planning.files import ModelFiles

    try:
        path = model_folder(named)
    except FileNotFoundError:
        if named not in KNOWN:
            raise
        name, config, _ = find_config(named)
        return ModelFiles.of_config(name, _used(config, draft=draft))
    opened = open_folder(path)
    for note in opened.notes:
        to_stderr(f"note: {note}")
    return ModelFiles.of_folder(title(path), _used(opened.config, draft=draft), opened.reader)


def _used(config: "ModelConfig", *, draft: bool) -> "ModelConfig":
    return config.without_prediction() if config.dspark and not draft else config


def default_threads() -> int:
    """Of a step, where no flag gives their number."""
    import torch

    return torch.get_num_threads()


def _speed(rates: "Rates", most: float | None) -> dict[str, Any]:
    return {"rates": asdict(rates), "most_tokens_per_second": most}
