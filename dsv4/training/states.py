"""The states of a run: the last one and the one before, each whole, in the run's folder.

One process writes `state.pt`. Several write a folder `state-STEP` (`dsv4.distributed.checkpoint`); the check that
one is whole is here, because a run in one process must notice it.
"""

import json
import logging
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsv4.files import is_full, write_whole
from dsv4.model.lora import learned_state, load_learned_state
from dsv4.model.transformer import Transformer
from dsv4.training.param_groups import Optimizers

STATE_FILE, PREVIOUS_FILE = "state.pt", "state.previous.pt"
RANKS_PREFIX, RANKS_HEADER, RANKS_SIZES = "state-", "header.json", "sizes"
_log = logging.getLogger(__name__)


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the newest state; the one before stays. On an error both stay as they are, and OSError names the file. The
    file does not depend on the device: a run may go on on another."""
    held = on_host(state)
    write_whole(folder / STATE_FILE, lambda out: torch.save(held, out), keep=folder / PREVIOUS_FILE)


def save_if_there_is_room(save: Callable[[], None]) -> None:
    """Call `save`; a full disk is a warning, and the run goes on with the state before. Raises other OSErrors."""
    try:
        save()
    except OSError as error:
        if not is_full(error):
            raise
        _log.warning("no state was written (%s); the previous one stays, and the run goes on", error)


def find_state(folder: Path) -> Path | None:
    """The newest state that is whole; None if the folder has no state.

    A damaged state is reported and renamed to *.damaged. Raises ValueError if all states are damaged.
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
    """Remove the states of a run that will not be extended."""
    for name in (STATE_FILE, PREVIOUS_FILE):
        (folder / name).unlink(missing_ok=True)


def load_state(file: Path, *, mapped: bool = False) -> dict[str, Any]:
    """Read a state. mapped: tensors stay on the disk until they are used."""
    return torch.load(file, weights_only=True, mmap=mapped)


def _fault(file: Path) -> str | None:
    """The fault of a state file, None if it has none; every byte is compared with its checksum."""
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
        if broken is not None:
            return f"{broken} has changed"
        load_state(file, mapped=True)
    except (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        return str(error).splitlines()[0]
    return None


def latest_of_ranks(folder: Path) -> Path | None:
    """The newest whole state of several ranks; one with a file cut or missing is passed over."""
    return max(whole_of_ranks(folder), default=(0, None))[1]


def whole_of_ranks(folder: Path) -> list[tuple[int, Path]]:
    """Steps and folders of the whole states of several ranks."""
    found = [path for path in folder.glob(f"{RANKS_PREFIX}*") if _whole(path)]
    return [(int(path.name.removeprefix(RANKS_PREFIX)), path) for path in found]


def _whole(path: Path) -> bool:
    if not path.name.removeprefix(RANKS_PREFIX).isdigit():
        return False
    try:
        sizes = json.loads((path / RANKS_HEADER).read_text(encoding="utf-8")).get(RANKS_SIZES, {})
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def capture_state(model: Transformer, optimizers: Optimizers) -> dict[str, Any]:
    """A copy in memory of optimiser states, weights and router biases; with adapters, of them in place of weights."""
    return _copy({"model": learned_state(model), "optimizers": optimizers.state_dict()})


def restore_state(model: Transformer, optimizers: Optimizers, state: dict[str, Any]) -> None:
    """Put a copy of `capture_state` back, bit for bit; the copy stays usable."""
    load_learned_state(model, state["model"])
    optimizers.load_state_dict(_copy(state["optimizers"]))


def on_host(value: Any) -> Any:
    """The same with every tensor in the memory of the host."""
    return _each_tensor(value, Tensor.cpu)


def _copy(value: Any) -> Any:
    return _each_tensor(value, lambda tensor: tensor.detach().clone())


def _each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _each_tensor(part, change) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_each_tensor(part, change) for part in value)
    return value
