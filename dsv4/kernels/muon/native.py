"""Muon by the native kernel: one matrix per thread, large ones first; memory is passed once."""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch

from dsv4.kernels import native
from dsv4.kernels.native.structs import MuonMatrix, MuonStep
from dsv4.kernels.newton_schulz.native import DTYPES
from dsv4.kernels.newton_schulz.reference import TINY

if TYPE_CHECKING:
    from dsv4.kernels.muon import Matrix, MuonRule


@cache
def _function() -> Callable[..., None]:
    return native.function("dsv4_muon_step", [ctypes.c_void_p])


def takes(matrices: "Sequence[Matrix]", rule: "MuonRule") -> str | None:
    """Why the native kernel does not take these; None if it does."""
    if rule.dtype not in DTYPES:
        return f"products are to compute in {rule.dtype}, not {' or '.join(map(str, DTYPES))}"
    for tensors in matrices:
        for x, what in zip(tensors, ("a weight", "a momentum", "a gradient"), strict=True):
            if not x.is_contiguous():
                return f"{what} is not contiguous"
            if reason := native.needs(x, (torch.float32,), what):
                return reason
    return None


def step_matrices(matrices: "Sequence[Matrix]", rule: "MuonRule") -> None:
    """See dsv4.kernels.muon.step_matrices."""
    largest_first = sorted(matrices, key=lambda tensors: -tensors[0].numel() * min(tensors[0].shape))
    addresses = [(*map(native.pointer, tensors), *tensors[0].shape) for tensors in largest_first]
    table = (MuonMatrix * len(addresses))(*addresses)
    numbers = [number for step in rule.steps for number in step]
    abc = (ctypes.c_float * len(numbers))(*numbers)
    call = MuonStep(
        matrices=ctypes.cast(table, ctypes.POINTER(MuonMatrix)),
        abc=ctypes.addressof(abc),
        count=len(addresses),
        steps=len(rule.steps),
        momentum=rule.momentum,
        kept=1 - rule.lr * rule.decay,
        rate=rule.lr * rule.rms,
        tiny=TINY,
        nesterov=rule.nesterov,
        int16=rule.dtype == torch.int16,
        threads=torch.get_num_threads(),
    )
    _function()(ctypes.addressof(call))
