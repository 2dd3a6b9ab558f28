"""`dsv4 sft`: fine-tune a model on conversations."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from dsv4.cli.flags import check_threads, device_change
from dsv4.cli.run_flags import RunFlags
from dsv4.cli.train_start import told_in_sentences

DEFAULT_RUN = RunFlags()


def sft(
    recipe: Path | None = None,
    *,
    init: Path | None = None,
    data: Annotated[Sequence[Path], Parameter(negative=())] = (),
    lora: int | None = None,
    epochs: float | None = None,
    lr: float | None = None,
    length: int | None = None,
    set: Annotated[Sequence[str], Parameter(negative=())] = (),
    run: Annotated[RunFlags, Parameter(name="*")] = DEFAULT_RUN,
) -> None:
    """Fine-tune a model on conversations (--init models/nano --data my.jsonl), or go on with a run that was stopped.

    Parameters
    ----------
    recipe
        TOML file with what the flags and the defaults do not say; docs/finetune.md describes it.
    init
        The model to start from: a checkpoint folder, the folder of a finished run, or the name of a pulled model.
    data
        JSON lines of conversations ({"messages": [...]}), a file or a folder of them; repeat the flag for several.
    lora
        Train adapters of this rank instead of the weights, which stay as they are stored; writes FOLDER/adapter.
    epochs
        How often every conversation is seen.
    lr
        Highest learning rate.
    length
        Tokens of a packed sequence; longer conversations are left out, and told. Default: the longest, at most 4,096.
    set
        Change a field of the recipe: --set optimizer.kind=muon; repeat the flag for several.
    """
    from dsv4.cli.sft_run import fine_tune
    from dsv4.posttraining.sft import SftWishes

    flags = {"lora": lora, "epochs": epochs, "lr": lr, "length": length, "steps": run.steps}
    check_threads(run.threads)
    for name, value in flags.items():
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"--{name} must be positive and finite, got {value}")
    with told_in_sentences():
        changes = [*set, *device_change("run.device", run.device)]
        fine_tune(_read(recipe, changes), init, SftWishes(tuple(data), lora, epochs, lr, length), run)


def _read(recipe: Path | None, changes: Sequence[str]) -> dict[str, Any]:
    """The tables of a recipe, changed as --set says."""
    from dsv4.training.recipe_fields import set_field
    from dsv4.training.text_files import read_text

    raw: dict[str, Any] = {}
    if recipe is not None:
        if not recipe.is_file():
            raise ValueError(f"{recipe}: no such recipe; a file of conversations is given as --data {recipe}")
        try:
            raw = tomllib.loads(read_text(recipe))
        except tomllib.TOMLDecodeError as error:
            hint = f"; conversations are given as --data {recipe}" if recipe.suffix != ".toml" else ""
            raise ValueError(f"{recipe}: {error}{hint}") from None
    for change in changes:
        set_field(raw, change)
    return raw
