"""All that `dsv4 train` judges and takes before the first step, and what it says when a run cannot go on."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dsv4.cli.progress import check_live_port, console, live_page

if TYPE_CHECKING:
    from dsv4.checkpoint.names import Layout
    from dsv4.encoding import Tokenizer
    from dsv4.training.curves import LivePage
    from dsv4.training.recipe import Recipe

# one of these is in the folder of every run
RUN_FILES = ("run.lock", "log.jsonl", "state.pt", "data")


def before_the_run(
    recipe: "Recipe", place: Path, live: int | None, track: str | None, held: ExitStack
) -> "LivePage | None":
    """What one process has alone: the folder, the page's port. All that can be judged at once is judged first."""
    from dsv4.model.device import choose_device
    from dsv4.training.checks import check_sources
    from dsv4.training.logbook import check_tracker
    from dsv4.training.run_lock import RunLock

    check_live_port(live)
    if track is not None:
        check_tracker(track)
    choose_device(recipe.run.device, "run.device")
    check_sources(recipe)
    check_run_folder(place)
    place.mkdir(parents=True, exist_ok=True)
    held.enter_context(RunLock(place))
    return held.enter_context(live_page(recipe.name, place / "log.jsonl", live))


def check_run_folder(place: Path) -> None:
    """Raise ValueError for a file, and for a folder that holds a model and no run."""
    if place.exists() and not place.is_dir():
        raise ValueError(f"--folder {place}: is a file; a run needs a folder")
    foreign = [name for name in ("config.json", "tokenizer.json", "model") if (place / name).exists()]
    if foreign and not any((place / name).exists() for name in RUN_FILES):
        raise ValueError(
            f"--folder {place}: holds {foreign[0]}, but no run; a run writes there, so name another folder"
        )


class RunInputs(NamedTuple):
    """What a run needs besides its data. layout: of the export, None for none."""

    tokenizer: "Tokenizer"
    text_side: dict[str, bytes]
    layout: "Layout | None"


def prepare(recipe: "Recipe", place: Path, export: str) -> RunInputs:
    """The tokenizer, and everything about the end of the run that can be judged now."""
    from dsv4.cli.train_text_side import text_side, tokenizer_for
    from dsv4.training.checks import check_codec, check_model, check_room, layout_of, needs_of, remarks
    from dsv4.training.states import find_state, latest_of_ranks

    layout = layout_of(recipe, export)
    check_model(recipe, recipe.data.vocabulary or 4096, layout)
    goes_on = find_state(place) is not None or latest_of_ranks(place) is not None
    with console().status("preparing the tokenizer"):
        tokenizer = tokenizer_for(recipe, place, goes_on=goes_on)
    check_codec(recipe, tokenizer)
    config = check_model(recipe, tokenizer.vocab_size, layout)
    check_room(place, needs_of(recipe, config, layout))
    for remark in remarks(recipe):
        console().print(f"note: {remark}")
    return RunInputs(tokenizer, text_side(recipe, place), layout)


@contextmanager
def reading() -> Iterator[Callable[[str, int], None]]:
    """Shows which source is being read; what reading has to say goes to the console."""
    with console().status("reading the data") as status:
        yield lambda name, tokens: status.update(f"reading {name}: {tokens:,} tokens")


@contextmanager
def told_in_sentences() -> Iterator[None]:
    """What can end a run through no fault of the program becomes a ValueError that says what to do."""
    from dsv4.distributed.failure import RankLost
    from dsv4.files import is_full
    from dsv4.training.recovery import Diverged

    handler = _ConsoleHandler(logging.WARNING)
    logging.getLogger("dsv4.training").addHandler(handler)
    try:
        yield
    except (Diverged, RankLost) as error:
        raise ValueError(str(error)) from error
    except OSError as error:
        if not is_full(error):
            raise
        where = error.filename or "a file"
        raise ValueError(
            f"{where}: {error.strerror}. What was saved before is whole: make room, and the same command goes on"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in _OUT_OF_MEMORY):
            raise
        said = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            "not enough memory: lower data.micro, or set run.recompute=true or recovery.snapshots=1 "
            f"(--dry-run tells what each stage needs; torch said: {said})"
        ) from error
    finally:
        logging.getLogger("dsv4.training").removeHandler(handler)


class _ConsoleHandler(logging.Handler):
    """What training warns of, between the lines of progress."""

    def emit(self, record: logging.LogRecord) -> None:
        console().print(f"warning: {record.getMessage()}")


# torch names no class for it on CPUs
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
