"""`dsv4 distill`: one student from several teachers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def distill(
    recipe: Path,
    *,
    set: Annotated[Sequence[str], Parameter(negative=())] = (),
    folder: Path | None = None,
    live: int | None = 0,
    track: Literal["trackio", "tensorboard", "wandb"] | None = None,
    export: Literal["auto", "release", "bf16", "fp32", "none"] = "auto",
    threads: int | None = None,
    steps: int | None = None,
    device: str | None = None,
) -> None:
    """Let a student answer prompts and learn from each domain's teacher how it would go on; or go on with such a run.

    Parameters
    ----------
    recipe
        TOML file; docs/posttraining.md describes every field.
    set
        Change a field: --set objective.kind=forward; repeat the flag for several.
    folder
        Where the run lives: state, log, rollouts, report, model. Default: runs/NAME of the recipe.
    live
        Port of the page with the curves and samples on 127.0.0.1; 0 takes a free one, -1 turns it off.
    track
        Also log to trackio, tensorboard or wandb (offline); needs that package.
    export
        Layout of the finished model in FOLDER/model: auto is release after quantisation-aware training, else bf16.
    threads
        CPU threads. Default: all cores this process may use.
    steps
        Save and stop after this many steps; the same command resumes.
    device
        Where it computes: cpu, cuda (a card; not run on one yet), cuda:N, or auto. Default: as the recipe says, or cpu.
    """
    from dsv4.cli.flags import check_run, device_change
    from dsv4.cli.folders import recipe_folder
    from dsv4.cli.train_start import told_in_sentences
    from dsv4.posttraining.distill_recipe import DistillRecipe

    check_run(threads, steps)
    made = DistillRecipe.from_file(recipe, [*set, *device_change("device", device)]).at(recipe_folder)
    with told_in_sentences():
        from dsv4.cli.rollout_start import Options, run_recipe
        from dsv4.posttraining.distill_run import DistillRun

        run_recipe(made, folder or Path("runs") / made.name, Options(live, track, export, steps, threads), DistillRun)
