"""What training asks of native code: products of all experts in one call, and the gradient of the clamped SwiGLU.

A assignments sorted by expert, E experts, N and K sizes of a matrix, F expert inner size.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dsv4.kernels import native
from dsv4.kernels.moe import cpu

_POINTER, _INT64, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


@cache
def _function(name: str) -> Callable[..., None]:
    arguments = {
        "grouped_rows": [_POINTER] * 4 + [_INT64] * 3 + [_INT] * 3,
        "grouped_weights": [_POINTER] * 4 + [_INT64] * 3 + [_INT],
        "swiglu_backward": [_POINTER] * 8 + [_INT64] * 2 + [ctypes.c_float, _INT],
    }[name]
    return native.function(f"dsv4_{name}", arguments)


def usable(*tensors: Tensor) -> bool:
    """Whether these can be used in an autograd node: float32 on the CPU."""
    return all(t.dtype == torch.float32 for t in tensors) and native.reachable(*tensors)


class Groups:
    """Assignments sorted by expert: `counts` of them each. All tensors are float32."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = counts
        first = [0]
        for count in counts:
            first.append(first[-1] + count)
        self._first = (_INT64 * len(first))(*first)

    def rows(self, a_AK: Tensor, weights: Sequence[Tensor], out_AN: Tensor, *, turned: bool, add: bool = False) -> None:
        """out = (or += with `add`) each expert's rows of a times weight[N, K]^T; with `turned` times weight[K, N]."""
        a_AK, weights = a_AK.contiguous(), [w.contiguous() for w in weights]
        sizes = len(self.counts), out_AN.shape[1], a_AK.shape[1]
        pointers = native.pointer(a_AK), _addresses(weights), native.pointer(out_AN), self._first
        _function("grouped_rows")(*pointers, *sizes, turned, add, torch.get_num_threads())

    def weights(self, a_AM: Tensor, b_AN: Tensor) -> list[Tensor | None]:
        """a^T b over each expert's rows; None for an expert without rows."""
        a_AM, b_AN = a_AM.contiguous(), b_AN.contiguous()
        sizes = len(self.counts), a_AM.shape[1], b_AN.shape[1]
        made = [a_AM.new_empty(sizes[1:]) if count else None for count in self.counts]
        pointers = native.pointer(a_AM), native.pointer(b_AN), _addresses(made), self._first
        _function("grouped_weights")(*pointers, *sizes, torch.get_num_threads())
        return made


def _addresses(tensors: Sequence[Tensor | None]) -> Any:
    return (_POINTER * len(tensors))(*(native.pointer(t) for t in tensors))


def swiglu_backward(
    gate_AF: Tensor, up_AF: Tensor, grad_AF: Tensor, weight_A: Tensor | None, limit: float
) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None]:
    """For hidden = clamped_swiglu(gate, up) * weight: hidden, and the gradients of gate, up and weight given that of
    hidden. Without a weight the first and the last are None."""
    gate_AF, up_AF, grad_AF = (t.contiguous() for t in (gate_AF, up_AF, grad_AF))
    weight_A = None if weight_A is None else weight_A.contiguous()
    d_gate_AF, d_up_AF = torch.empty_like(gate_AF), torch.empty_like(up_AF)
    hidden_AF, d_weight_A = (
        (None, None) if weight_A is None else (torch.empty_like(gate_AF), torch.empty_like(weight_A))
    )
    tensors = (gate_AF, up_AF, grad_AF, weight_A, hidden_AF, d_gate_AF, d_up_AF, d_weight_A)
    rows = gate_AF.numel() // max(1, gate_AF.shape[-1])
    pointers = [native.pointer(t) for t in tensors]
    _function("swiglu_backward")(*pointers, rows, gate_AF.shape[-1], limit, torch.get_num_threads())
    return hidden_AF, d_gate_AF, d_up_AF, d_weight_A


class _ClampedSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_TF: Tensor, up_TF: Tensor, limit: float) -> Tensor:
        ctx.save_for_backward(gate_TF, up_TF)
        ctx.limit = limit
        return cpu.clamped_swiglu(gate_TF.contiguous(), up_TF.contiguous(), limit)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_TF: Tensor) -> tuple[Tensor, Tensor, None]:  # pyrefly: ignore
        gate_TF, up_TF = ctx.saved_tensors
        _, d_gate_TF, d_up_TF, _ = swiglu_backward(gate_TF, up_TF, grad_TF, None, ctx.limit)
        return d_gate_TF, d_up_TF, None


def clamped_swiglu(gate_TF: Tensor, up_TF: Tensor, limit: float) -> Tensor:
    """See dsv4.kernels.moe.clamped_swiglu; as one autograd node."""
    return _ClampedSwiGLU.apply(gate_TF, up_TF, limit)  # pyrefly: ignore
