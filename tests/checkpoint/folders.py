"""What tests of folders share: loading, refusing, rewriting."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsv4.checkpoint import check_folder, open_folder, state_for
from dsv4.checkpoint.inventory import INDEX_NAME
from dsv4.config import Mode

Tensors = dict[str, Tensor]


def state(folder: Path, mode: Mode = "fp32") -> Tensors:
    opened = open_folder(folder)
    return dict(state_for(opened.config, opened.reader, mode))


def refused(folder: Path) -> str:
    """What load says, which must be what check says."""
    with pytest.raises((ValueError, OSError)) as caught:
        state(folder, "release")
    report = check_folder(folder)
    assert not report.ok
    assert any(problem in str(caught.value) or str(caught.value) in problem for problem in report.problems)
    return str(caught.value)


def rewrite(folder: Path, change: Callable[[Tensors], Any]) -> Path:
    """The folder's tensors, changed, in one file."""
    tensors: Tensors = {}
    for file in sorted(folder.glob("model-*.safetensors")):
        tensors |= load_file(file)
        file.unlink()
    (folder / INDEX_NAME).unlink()
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def edit_config(folder: Path, **changes: Any) -> Path:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **changes}))
    return folder
