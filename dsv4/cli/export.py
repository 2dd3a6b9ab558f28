"""`dsv4 export`: the command that starts a model on vLLM, SGLang or Dynamo, from published recipes."""

import json as json_format
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from dsv4.planning.files import ModelFiles
    from dsv4.planning.launch import Launch

# the layout that the recipes are for
LAYOUT = "release"
SHOWN = 8  # addresses of copies in the last line


def export(
    folder: str,
    *,
    engine: Annotated[Literal["vllm", "sglang", "dynamo"], Parameter(name="--for")],
    gpus: str | None = None,
    goal: Literal["latency", "throughput"] = "throughput",
    json: bool = False,
) -> None:
    """Check a model folder and print the command that starts it on another engine: a published recipe, with its source,
    its date, what each GPU must hold, and what is known to go wrong. Exits with 1 for a folder with problems and for
    weights that do not fit.

    Parameters
    ----------
    folder
        Checkpoint folder or the name of a pulled model; flash, pro, flash-0731 and pro-0813 work before they are
        pulled.
    engine
        vllm, sglang or dynamo.
    gpus
        The GPUs, as 8xH200. Without it all published recipes for the model are listed.
    goal
        latency (few users) or throughput, where there are recipes for both.
    json
        Print one JSON object.
    """
    from dsv4.cli.plan import find_files
    from dsv4.hub.names import RELEASED
    from dsv4.planning.launch import choose, launch, parse_gpus, shape_of

    wanted = None if gpus is None else parse_gpus(gpus)
    place = _checked(folder)
    files = find_files(folder, draft=True)
    shape = shape_of(files.config)
    if wanted is None:
        _list(engine, shape, json=json)
        return
    _check_layout(files, place or Path(folder))
    recipe, notes = choose(engine, shape, wanted, goal)
    made = launch(files, str(place or RELEASED[folder].name), recipe, wanted[0])
    if json:
        print(json_format.dumps(asdict(made) | {"fits": made.fits, "notes": notes}, default=str))
    else:
        _print(made, notes, folder)
    if not made.fits:
        raise SystemExit(1)


def _checked(folder: str) -> Path | None:
    """The folder, after `dsv4 check`; None for a name that was not pulled. Raises ValueError for problems."""
    from dsv4.api.tokenizer import check_tokenizer
    from dsv4.checkpoint.check import check_folder
    from dsv4.cli.folders import model_folder

    try:
        path = model_folder(folder)
    except FileNotFoundError:
        return None  # `find_files` knows released models, and raises for other names
    report = check_tokenizer(check_folder(path))
    if not report.ok:
        more = f" and {len(report.problems) - 1} more" if len(report.problems) > 1 else ""
        problem = report.problems[0]
        where = "" if problem.startswith(str(path)) else f"{path}: "
        raise ValueError(f"{where}{problem}{more}: `dsv4 check {folder}` lists all problems")
    return path


def _check_layout(files: "ModelFiles", place: Path) -> None:
    """Raises ValueError for another layout than the recipes are for."""
    name = files.layout.name
    if name != LAYOUT:
        raise ValueError(
            f"{place}: the weights are in layout {name}, the recipes are for the released one: "
            f"`dsv4 convert {place} DIR` writes it"
        )


def _list(engine: str, shape: str, *, json: bool) -> None:
    from dsv4.planning.launch import recipes

    rows = [row for row in recipes() if (row.engine, row.model) == (engine, shape)]
    if json:
        print(json_format.dumps([asdict(row) for row in rows], default=str))
        return
    print(f"published recipes of {engine} for {shape} (choose one by --gpus):")
    for row in rows:
        print(f"  {row.gpus}x{row.gpu:7} {row.goal:11} context {row.context:>9,}  {row.source} at {row.commit}")


def _print(made: "Launch", notes: list[str], folder: str) -> None:
    from dsv4.planning.launch import FIRST_PORT

    recipe = made.recipe
    since = f", {recipe.engine} {recipe.since} or later" if recipe.since else ""
    print(f"# {recipe.source} at {recipe.commit}, read on {recipe.date}{since}")
    verdict = "fits" if made.fits else "DOES NOT FIT"
    print(
        f"# each {recipe.gpu}: {made.need / 1e9:,.1f} GB for weights and one sequence of {recipe.context:,} tokens, of "
        f"{made.room / 1e9:,.1f} GB that can be used: {verdict}"
    )
    for note in notes:
        print(f"# note: {note}")
    for known in made.conflicts:
        print(f"# known: {known.text} ({known.source})")
    print(" \\\n    ".join(made.lines))
    print(f"# without dsv4 serve in front of it also: {' '.join(made.parsers)}")
    ports = range(FIRST_PORT, FIRST_PORT + min(made.copies, SHOWN))
    if made.copies > 1:
        print(f"# {made.copies} of these fill the GPUs: each with GPUs (CUDA_VISIBLE_DEVICES) and a --port of its own")
    if recipe.engine == "dynamo":
        print("# beside it the frontend: DYN_ROUTER_MODE=kv python3 -m dynamo.frontend --trust-remote-code")
        return
    urls = " ".join(f"--engine http://127.0.0.1:{port}" for port in ports)
    more = " ..." if made.copies > SHOWN else ""
    print(f"# then: dsv4 serve {quote(folder)} {urls}{more}")
