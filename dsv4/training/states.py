"""The states of a run in one process: the last one and the one before, each whole, in the run's folder."""

import logging
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from dsv4.files import write_whole

STATE_FILE, PREVIOUS_FILE = "state.pt", "state.previous.pt"
_log = logging.getLogger(__name__)


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the newest state; the one before stays. On an error both stay as they are, and OSError names the file."""
    write_whole(folder / STATE_FILE, lambda out: torch.save(state, out), keep=folder / PREVIOUS_FILE)


def find_state(folder: Path) -> Path | None:
    """The newest state that is whole; None where the folder has none at all.

    A damaged one is reported and put aside as *.damaged. Raises ValueError when there are only damaged ones.
    """
    damaged: list[str] = []
    for name in (STATE_FILE, PREVIOUS_FILE):
        file = folder / name
        if not file.exists():
            continue
        fault = _fault(file)
        if fault is None:
            if damaged:
                _log.warning("%s; going on from the state before, %s", "; ".join(damaged), file)
                (folder / STATE_FILE).replace(folder / (STATE_FILE + ".damaged"))
            return file
        damaged.append(f"{file} is damaged ({fault})")
    if damaged:
        raise ValueError(f"{'; '.join(damaged)}: the run cannot go on; remove the files to start it anew")
    return None


def remove_states(folder: Path) -> None:
    """For runs that are finished and will not be extended."""
    for name in (STATE_FILE, PREVIOUS_FILE):
        (folder / name).unlink(missing_ok=True)


def load_state(file: Path, *, mapped: bool = False) -> dict[str, Any]:
    """What was written. mapped: tensors stay on the disk until they are read."""
    return torch.load(file, weights_only=True, mmap=mapped)


def _fault(file: Path) -> str | None:
    """What is wrong with a state, every byte compared with its checksum."""
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
        if broken is not None:
            return f"{broken} has changed"
        load_state(file, mapped=True)
    except (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        return str(error).splitlines()[0]
    return None
