"""`dsv4 train`: run a recipe, show how it goes, keep everything needed to go on."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from dsv4.cli.flags import check_run, device_change
from dsv4.cli.folders import recipe_folder
from dsv4.cli.progress import RunProgress, StopAfterStep, console, report_at_end
from dsv4.cli.train_start import before_the_run, prepare, reading, told_in_sentences

if TYPE_CHECKING:
    from dsv4.distributed.mesh import Mesh
    from dsv4.encoding import Tokenizer
    from dsv4.training.curves import LivePage
    from dsv4.training.recipe import Recipe
    from dsv4.training.trainer import Trainer


def train(
    recipe: Path,
    *,
    set: Annotated[Sequence[str], Parameter(negative=())] = (),
    folder: Path | None = None,
    live: int | None = 0,
    track: Literal["trackio", "tensorboard", "wandb"] | None = None,
    table: bool = False,
    export: Literal["auto", "release", "bf16", "fp32", "none"] = "auto",
    threads: int | None = None,
    steps: int | None = None,
    device: str | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Train a model from a recipe, or go on with a run that was stopped.

    Parameters
    ----------
    recipe
        TOML file; recipes/ has some, docs/training.md describes every field.
    set
        Change a field: --set lr.peak=1e-3; repeat the flag for several.
    folder
        Where the run lives: state, log, report, model. Default: runs/NAME of the recipe.
    live
        Port of the page with the curves on 127.0.0.1; 0 takes a free one, -1 turns it off.
    track
        Also log to trackio, tensorboard or wandb (offline); needs that package.
    table
        Print which optimiser moves which parameter, and stop.
    export
        Layout of the finished model in FOLDER/model: auto is release after quantisation-aware training, else bf16.
    threads
        CPU threads. Default: all cores this process may use.
    steps
        Save and stop after this many steps; the same command resumes. With --dry-run: steps of each stage (default 1).
    device
        Where it computes: cpu, cuda (a card; not run on one yet), cuda:N, or auto. Default: as the recipe says, or cpu.
    dry_run
        Run every stage for a step in a temporary folder, export and load the model, say what the run will cost.
    """
    from dsv4.training.recipe import Recipe

    check_run(threads, steps)
    made = Recipe.from_file(recipe, [*set, *device_change("run.device", device)], recipe_folder)
    place = folder or Path("runs") / made.name
    with told_in_sentences():
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        if table:
            _print_table(made)
        elif dry_run:
            from dsv4.cli.train_dry_run import dry_run as rehearse

            rehearse(made, place, export, steps or 1)
        else:
            _train(made, place, live, track, export, steps)


def _train_draft(
    recipe: "Recipe", place: Path, live: int | None, track: str | None, export: str, steps: int | None
) -> None:
    """A run of the draft head alone."""
    from dsv4.cli.train_draft import base_of, draft_trainer, export_with_head, layout_for
    from dsv4.distributed.mesh import launched

    if launched():
        raise ValueError("draft: a draft head is trained in one process: start it without torchrun")
    recipe.scale.check(1)
    base = base_of(recipe, place)
    with ExitStack() as held:
        page = before_the_run(recipe, place, live, track, held)
        prepared = prepare(recipe, place, layout_for(base, export))
        trainer = draft_trainer(recipe, base, place, prepared.tokenizer)
        if show_run(trainer, place, page, track, steps) and prepared.layout is not None:
            target = export_with_head(place, base, trainer, prepared.layout)
            console().print(f"model: {target} ({prepared.layout.name})")


def _print_table(recipe: "Recipe") -> None:
    import torch

    from dsv4.model.transformer import Transformer
    from dsv4.training.param_groups import table

    with torch.device("meta"):
        print(table(Transformer(recipe.config(recipe.data.vocabulary or 4096))))


def _train(recipe: "Recipe", place: Path, live: int | None, track: str | None, export: str, steps: int | None) -> None:
    """The run itself, on this process or, under torchrun, on all of them."""
    if recipe.draft is not None:
        _train_draft(recipe, place, live, track, export, steps)
        return
    mesh = start_mesh(recipe)
    with ExitStack() as held:
        first = mesh is None or not mesh.rank
        page = before_the_run(recipe, place, live, track, held) if first else None
        prepared = prepare(recipe, place, export)
        trainer = _trainer(recipe, place, prepared.tokenizer, mesh)
        finished = show_run(trainer, place, page, track, steps) if first else follow(trainer, steps)
        if finished and first and prepared.layout is not None:
            from dsv4.cli.train_export import export_model

            target = export_model(place, trainer.model.config, trainer.weights(), prepared.layout, prepared.text_side)
            console().print(f"model: {target} ({prepared.layout.name})")
        if mesh is not None:
            mesh.wait()
            mesh.close()


def start_mesh(recipe: "Recipe") -> "Mesh | None":
    """The ranks that torchrun started, None for a process without it. Ranks other than the first wait here until the
    first one calls `wait`: it makes what all read."""
    from dsv4.distributed.mesh import Mesh, launched

    if not launched():
        recipe.scale.check(1)
        return None
    mesh = Mesh.start(recipe.scale, _rank_device(recipe.run.device))
    if mesh.rank:
        mesh.wait()
    return mesh


def _rank_device(device: str) -> str:
    """The kind of device that ranks compute on; each process has a card of its own."""
    from dsv4.model.device import choose_device

    if ":" in device:
        raise ValueError(
            f"run.device must be cpu, cuda or auto under torchrun, where each process has its own card, got {device!r}"
        )
    return choose_device(device, "run.device").type


def _trainer(recipe: "Recipe", place: Path, tokenizer: "Tokenizer", mesh: "Mesh | None") -> "Trainer":
    from dsv4.training.data import open_sources
    from dsv4.training.trainer import Trainer

    with reading() as progress:
        sources = open_sources(recipe, tokenizer, place / "data", progress)
    if mesh is None:
        return Trainer(recipe, place, tokenizer, sources)
    if mesh.rank == 0:
        mesh.wait()
    from dsv4.distributed.ranks import Ranks

    return Trainer(recipe, place, tokenizer, sources, team=Ranks(mesh))


def follow(trainer: "Trainer", steps: int | None) -> bool:
    """Train on a rank other than the first, and stop when the first one does. True if the run reached its end."""
    with StopAfterStep() as stop:
        for count, _ in enumerate(trainer.run(), start=1):
            if trainer.team.agree(stop.requested):
                trainer.save()
                raise KeyboardInterrupt
            if count == steps and not trainer.done:
                trainer.save()
                return False
    return True


def show_run(trainer: "Trainer", place: Path, page: "LivePage | None", track: str | None, steps: int | None) -> bool:
    """Train, log every step and show the progress. True if the run reached its end."""
    from dsv4.training.logbook import Logbook, open_tracker

    recipe, total = trainer.recipe, trainer.schedule.tokens
    trackers = (open_tracker(track, recipe.name, place, recipe.to_dict()),) if track else ()
    log = Logbook(place / "log.jsonl", trainer.step, trackers)
    report = place / "report.html"
    bar = RunProgress(total, trainer.tokens)
    out = bar.console
    out.print(f"{recipe.name}: step {trainer.step:,}, {trainer.tokens:,} of {total:,} tokens")
    if page is not None:
        out.print(f"curves: {page.url}")
    with report_at_end(recipe.name, log, report, {"recipe": recipe.to_dict()}), StopAfterStep() as stop, bar:
        for count, record in enumerate(trainer.run(), start=1):
            log.write(record.to_dict())
            place_now = f"step {record.step:,}  {record.tokens:,} tokens"
            bar.show(trainer.tokens, place_now, record.phase, record.summary())
            if record.spike is not None:
                out.print(f"spike at {record.spike}: back to step {record.back_to}, with Anticipatory Routing")
            if trainer.team.agree(stop.requested):
                trainer.save()
                out.print("saved; the same command resumes the run")
                raise KeyboardInterrupt
            if count == steps and not trainer.done:
                trainer.save()
                out.print(f"saved after {count:,} steps; the same command resumes the run")
                return False
    out.print(f"done in {trainer.seconds / 60:.1f} minutes; report: {report}")
    return True
