"""`dsv4 pull`: fetch a model from a hub, so that every verb takes its name."""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from dsv4.hub.names import Repository
    from dsv4.hub.pull import PullWishes
    from dsv4.hub.sources import Hub


def pull(
    name: str | None = None,
    dir: Path | None = None,
    *,
    revision: str | None = None,
    source: Literal["huggingface", "modelscope"] = "huggingface",
    include: Annotated[Sequence[str], Parameter(negative=())] = (),
    exclude: Annotated[Sequence[str], Parameter(negative=())] = (),
    workers: int = 8,
    force: bool = False,
    dry_run: bool = False,
) -> None:
    """Fetch a model, check every file as it arrives, and print its folder. An interrupted pull goes on when the command
    is repeated. Afterwards FOLDER of every verb may be NAME.

    HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE are honoured, and their counterparts of ModelScope.

    Parameters
    ----------
    name
        flash, pro, flash-0731, pro-0813, flash-base, pro-base, or OWNER/NAME of a repository.
    dir
        Folder for the files. Default: the hub's own cache, which other programs share.
    revision
        Branch, tag or commit. Default: the newest state.
    source
        The hub: huggingface (or what HF_ENDPOINT names) or modelscope.
    include
        Also fetch files that match a pattern as inference/*; repeat the flag for several.
    exclude
        Leave out files that match a pattern; repeat the flag for several.
    workers
        Files that are fetched at the same time.
    force
        Fetch a model that cannot be loaded, too.
    dry_run
        Only tell which files would be fetched.
    """
    from dsv4.cli.flags import at_least
    from dsv4.hub.names import repository
    from dsv4.hub.pull import PullWishes

    at_least(1, workers=workers)
    wanted = None if name is None else repository(name)
    if name is None or wanted is None:
        raise ValueError(_no_name(name))
    if dir is not None and dir.exists() and not dir.is_dir():
        raise ValueError(f"{dir} is not a folder")
    wishes = PullWishes(dir, revision, tuple(include), tuple(exclude), workers, force)
    if dry_run:
        _show(_hub(source), wanted, wishes)
        return
    # SIGTERM ends a pull like Ctrl-C: what has arrived is on the disk
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _fetch(source, name, wanted, wishes)
    finally:
        signal.signal(signal.SIGTERM, before)


def _no_name(name: str | None) -> str:
    """Why nothing of this name can be fetched."""
    from dsv4.hub.names import RELEASED

    if name == "nano":
        return "nano comes with dsv4 and is not fetched: `dsv4 chat` uses it, and every verb takes its name"
    given = "nothing" if name is None else repr(name)
    return f"NAME must be one of {', '.join(RELEASED)} or OWNER/NAME of a repository, got {given}"


def _hub(source: str) -> "Hub":
    from dsv4.hub.huggingface import HuggingFace
    from dsv4.hub.modelscope import ModelScope

    return ModelScope() if source == "modelscope" else HuggingFace()


def _show(hub: "Hub", wanted: "Repository", wishes: "PullWishes") -> None:
    """The files on stdout, their sum on stderr."""
    from dsv4.cli.pull_progress import PullProgress
    from dsv4.files import size_text
    from dsv4.hub.download import PullWatch
    from dsv4.hub.pull import find

    with PullProgress() as screen:
        listing = find(hub, wanted, wishes, PullWatch(screen.arrived, screen.note))
    for file in listing.files:
        print(f"{file.size:>16,}  {file.name}")
    total = sum(file.size for file in listing.files)
    print(f"{listing.repo} at {listing.commit}: {len(listing.files)} files, {size_text(total)}", file=sys.stderr)


def _fetch(source: str, name: str, wanted: "Repository", wishes: "PullWishes") -> None:
    """Fetch, check the folder as a whole, and say how to go on."""
    from dsv4.checkpoint.check import check_folder
    from dsv4.cli.pull_progress import PullProgress
    from dsv4.files import size_text
    from dsv4.hub.folders import find_pulled
    from dsv4.hub.pull import pull as fetch
    from dsv4.hub.sources import OfflineError

    with PullProgress() as screen:
        try:
            folder = fetch(_hub(source), wanted, wishes, screen)
        except OfflineError:
            here = find_pulled(wanted)
            if here is None or wishes.folder is not None or wishes.revision is not None:
                raise
            screen.note("the network is forbidden (HF_HUB_OFFLINE): what is here is used")
            folder = here
        except KeyboardInterrupt:
            screen.note("stopped; what has arrived is kept, and the same command goes on")
            raise
        screen.note("all files are here; checking the folder as a whole")
        report = check_folder(folder)
        for note in report.notes:
            screen.note(f"note: {note}")
    print(folder)
    if not report.ok:
        more = f" (and {len(report.problems) - 1} more problems)" if len(report.problems) > 1 else ""
        raise ValueError(f"the model is here, and cannot be loaded as it is: {report.problems[0]}{more}")
    size = f"{report.tensors:,} tensors, {size_text(report.bytes)}, layout {report.layout}"
    print(f"{wanted.name} is ready ({size}): `dsv4 chat {name}`, `dsv4 serve {name}`", file=sys.stderr)
