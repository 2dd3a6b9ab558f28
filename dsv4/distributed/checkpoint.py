"""Checkpoints of many ranks that any number of ranks can read (torch.distributed.checkpoint).

A checkpoint is a folder `state-STEP` with one file per rank, an index of which tensor lies where, and `header.json`. It
gets this name when it is complete; only then are older checkpoints removed, all but the previous one. Tensors are
stored by name: a cut tensor as its parts, a copied one once, a split expert or an owned momentum by the rank that has
it. All ranks must see the same folder.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from dsv4.files import rename, sync_path, write_whole
from dsv4.training.states import RANKS_HEADER, RANKS_PREFIX, RANKS_SIZES, whole_of_ranks


def save(folder: Path, step: int, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write the ranks' tensors and a JSON header; all ranks call it together. Returns the checkpoint's folder."""
    target, staging = folder / f"{RANKS_PREFIX}{step}", folder / f"{RANKS_PREFIX}{step}.new"
    first = dist.get_rank() == 0
    if first:
        shutil.rmtree(staging, ignore_errors=True)
    dist.barrier()
    dcp.save(dict(tensors), checkpoint_id=staging)
    if first:
        sizes = {file.name: _synced(file) for file in staging.iterdir()}
        write_whole(staging / RANKS_HEADER, lambda out: out.write(json.dumps({**header, RANKS_SIZES: sizes}).encode()))
        before = max((one for one in whole_of_ranks(folder) if one[1] != target), default=(0, None))[1]
        shutil.rmtree(target, ignore_errors=True)  # the same step, saved before
        rename(staging, target)
        for other in folder.glob(f"{RANKS_PREFIX}*"):
            if other not in (target, before):
                shutil.rmtree(other, ignore_errors=True)
    dist.barrier()
    return target


def _synced(file: Path) -> int:
    """Sync a file; returns its size in bytes."""
    sync_path(file)
    return file.stat().st_size


def header(path: Path) -> dict[str, Any]:
    """The header that `save` was given."""
    found = json.loads((path / RANKS_HEADER).read_text(encoding="utf-8"))
    return {name: value for name, value in found.items() if name != RANKS_SIZES}


def names(path: Path) -> set[str]:
    """Names of all tensors in a checkpoint."""
    return set(_shapes(path))


def load(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors in place with the values stored under their names, each rank its own; all ranks call it
    together. Raises KeyError for a name that is not stored."""
    known = names(path)
    for name in tensors:
        if name not in known:
            raise KeyError(f"{path} holds no {name}")
    dcp.load(dict(tensors), checkpoint_id=path)


def read(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """Whole tensors whose names begin with `prefix`, by the rest of their names; one process alone, on the CPU."""
    empty = {
        name: torch.empty(meta.size, dtype=meta.properties.dtype)
        for name, meta in _shapes(path).items()
        if name.startswith(prefix)
    }
    dcp.load(empty, checkpoint_id=path, no_dist=True)
    return {name.removeprefix(prefix): tensor for name, tensor in empty.items()}


def _shapes(path: Path) -> dict[str, TensorStorageMetadata]:
    stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    return {name: meta for name, meta in stored.items() if isinstance(meta, TensorStorageMetadata)}
