"""Native CPU kernels: C++ called with raw pointers. The library comes with the package dsv4-kernels or is compiled at
first use; where neither is possible, torch runs.

DSV4_NATIVE=0 turns them off; DSV4_ISA=amx|avx512bf16|avx512|avx2|portable selects an instruction set.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsv4.kernels.native.build import BuildError, choose_isa, library_path
from dsv4.kernels.native.packaged import packaged_folder

__all__ = [
    "BuildError",
    "available",
    "describe",
    "function",
    "isa",
    "library",
    "needs",
    "pointer",
    "why_not",
]


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and the reason."""
    if os.environ.get("DSV4_NATIVE") == "0":
        return None, "turned off by DSV4_NATIVE=0"
    try:
        # torch is loaded already, so these kernels find its OpenMP runtime and share its threads
        return ctypes.CDLL(str(library_path(isa()))), ""
    except (BuildError, OSError, ValueError) as error:
        return None, str(error)


@cache
def isa() -> str:
    """The instruction set used. Raises ValueError when the machine does not have the set in DSV4_ISA."""
    return choose_isa(os.environ.get("DSV4_ISA"))


def available() -> bool:
    """Whether the native kernels run here; builds them on first use."""
    return _load()[0] is not None


def why_not() -> str:
    """The reason why the native kernels do not run here; empty if they run."""
    return _load()[1]


def describe() -> str:
    """One line that tells users which kernels run."""
    if not available():
        return f"plain torch ({why_not().splitlines()[0]})"
    packaged = Path(library()._name).parent == packaged_folder()
    return f"native, {isa()}, {'from dsv4-kernels' if packaged else 'compiled here'}"


def library() -> ctypes.CDLL:
    """The loaded library. Raises BuildError with the reason when there is none."""
    loaded, reason = _load()
    if loaded is None:
        raise BuildError(f"the native kernels are not available: {reason}")
    return loaded


def function(name: str, arguments: Sequence[type], result: type | None = None) -> Callable[..., Any]:
    """A function of the library with its C types. Callers keep it, because its declaration costs more time than
    a call."""
    run = getattr(library(), name)
    run.argtypes, run.restype = list(arguments), result
    return run


def needs(tensor: Tensor | None, dtypes: Sequence[torch.dtype], what: str) -> str | None:
    """The reason why native code cannot read this tensor; None if it can, or if the tensor is None.

    It needs memory of the CPU, one of `dtypes`, and the library. `what` names the tensor in the reason.
    """
    if tensor is None:
        return None
    if tensor.device.type != "cpu":
        return f"{what} is on {tensor.device}, not on the CPU"
    if tensor.dtype not in dtypes:
        return f"{what} is {tensor.dtype}, not {' or '.join(map(str, dtypes))}"
    return None if available() else f"the native kernels do not run here: {why_not()}"


def pointer(tensor: Tensor | None) -> int | None:
    """The address of a contiguous tensor's first element; None stays null."""
    if tensor is None:
        return None
    assert tensor.is_contiguous(), "native kernels read contiguous memory"
    return tensor.data_ptr()
