"""Mixture of experts in native code: routing, a whole layer of experts in one call, and the products of training.

Legend: T tokens, D hidden size, E experts, K choices per token, F expert inner size, A assignments sorted by expert,
N output rows, K input columns (of one product).
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from dsv4.kernels import native
from dsv4.kernels.matmul.native import BF16, F32, weight_kind
from dsv4.kernels.moe.assignments import Assignments
from dsv4.kernels.moe.residency import unread
from dsv4.kernels.moe.weights import EqualTensors, ExpertWeights

_DTYPE_OF_KIND = {F32: torch.float32, BF16: torch.bfloat16}
_POINTERS, _INTS, _LONGS = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64


@dataclass(frozen=True, slots=True)
class _PackedExperts:
    """The arguments of the native call that an ExpertWeights provides."""

    pointers_6E: Tensor  # addresses of w1 w2 w3 s1 s2 s3; 0 where there is no scale
    rows: tuple[int, ...]  # addresses of the six rows of that table
    inner: int
    kind: int
    shared_kind: int  # -1: no shared expert


@cache
def _function(name: str) -> Callable[..., int]:
    arguments, result = {
        "expert_mlp": (
            [_POINTERS] * 11 + [_LONGS] * 5 + [_INTS] * 4 + [ctypes.c_float] + [_INTS] * 2,
            _LONGS,
        ),
        "affinity": ([_POINTERS] * 2 + [_LONGS, _INTS], None),
        "choose_experts": ([_POINTERS] * 3 + [_LONGS] * 3 + [_INTS], None),
        "expert_weights": ([_POINTERS] * 3 + [_LONGS] * 3 + [ctypes.c_float], None),
        "clamped_swiglu": ([_POINTERS] * 3 + [_LONGS, ctypes.c_float, _INTS], None),
        "grouped_rows": ([_POINTERS] * 4 + [_LONGS] * 3 + [_INTS] * 3, None),
        "grouped_weights": ([_POINTERS] * 4 + [_LONGS] * 3 + [_INTS], None),
        "swiglu_backward": ([_POINTERS] * 8 + [_LONGS] * 2 + [ctypes.c_float, _INTS], None),
    }[name]
    return native.function(f"dsv4_{name}", arguments, result)


def _kind_of(weights: ExpertWeights, experts: Sequence[int]) -> int | None:
    """The one kind of all matrices of these experts, contiguous on the CPU; None if there is no such kind."""
    lists = (weights.w1, weights.w2, weights.w3, weights.s1, weights.s2, weights.s3)
    if all(isinstance(part, EqualTensors) for part in lists):
        experts = experts[:1]
    kinds = set()
    for part, scales in ((weights.w1, weights.s1), (weights.w2, weights.s2), (weights.w3, weights.s3)):
        for e in experts:
            w, s = part[e], scales[e]
            fits = all(t is None or (t.is_contiguous() and t.device.type == "cpu") for t in (w, s))
            kinds.add(weight_kind(w, s) if fits else None)
    return kinds.pop() if len(kinds) == 1 else None


def _addresses_of(part: Sequence[Tensor | None]) -> list[int]:
    return part.addresses() if isinstance(part, EqualTensors) else [0 if t is None else t.data_ptr() for t in part]


def packed_layer(weights: ExpertWeights) -> _PackedExperts | None:
    """Built once for each ExpertWeights; None if the native code cannot read it."""
    if not weights.native:
        kind = _kind_of(weights, range(weights.routed))
        shared = _kind_of(weights, [weights.routed]) if weights.shared else -1
        layer = None
        if kind is not None and shared is not None:
            lists = (weights.w1, weights.w2, weights.w3, weights.s1, weights.s2, weights.s3)
            table_6E = torch.tensor([_addresses_of(part) for part in lists])
            rows = tuple(row.data_ptr() for row in table_6E)
            layer = _PackedExperts(table_6E, rows, weights.w1[0].shape[0], kind, shared)
        weights.native["layer"] = layer
    return weights.native["layer"]


def takes_layer(x_TD: Tensor, ids_TK: Tensor, weight_TK: Tensor, weights: ExpertWeights) -> str | None:
    """Why `expert_mlp` does not take these; None if it does."""
    why = native.needs(x_TD, (torch.float32, torch.bfloat16), "x")
    if why is not None:
        return why
    layer = packed_layer(weights)
    if layer is None:
        return "the routed experts are not all in one format of contiguous CPU memory"
    if any(_DTYPE_OF_KIND.get(kind, x_TD.dtype) != x_TD.dtype for kind in (layer.kind, layer.shared_kind)):
        return f"float weights must have the dtype of x, {x_TD.dtype}"
    return native.needs(ids_TK, (ids_TK.dtype,), "ids") or native.needs(weight_TK, (weight_TK.dtype,), "the weights")


def expert_mlp(x_TD: Tensor, ids_TK: Tensor, weight_TK: Tensor, weights: ExpertWeights) -> Tensor:
    """See dsv4.kernels.moe.expert_mlp."""
    layer = packed_layer(weights)
    assert layer is not None
    x_TD, ids_TK = x_TD.contiguous(), ids_TK.to(torch.int64).contiguous()
    weight_TK = weight_TK.to(torch.float32).contiguous()
    T, D = x_TD.shape
    out_TD = x_TD.new_empty(T, D, dtype=torch.float32)
    bad = _function("expert_mlp")(
        x_TD.data_ptr(),
        ids_TK.data_ptr(),
        weight_TK.data_ptr(),
        *layer.rows,
        None,
        out_TD.data_ptr(),
        T,
        ids_TK.shape[1],
        weights.routed,
        D,
        layer.inner,
        layer.kind,
        layer.shared_kind,
        layer.kind not in _DTYPE_OF_KIND,
        layer.shared_kind not in _DTYPE_OF_KIND,
        weights.limit,
        x_TD.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    if bad == -3:
        raise unread()
    if bad != -1:
        raise IndexError(f"expert_mlp: an expert id is not in 0..{weights.routed - 1}")
    return out_TD


def takes_affinity(logits_TE: Tensor) -> str | None:
    """Why the native kernel does not take these; None if it does. The other three functions of routing and SwiGLU use
    it too."""
    return _takes_plain(logits_TE)


def takes_choice(score_TE: Tensor, bias_E: Tensor, k: int) -> str | None:
    return _takes_plain(score_TE, bias_E)


def takes_weights(score_TE: Tensor, ids_TK: Tensor, scale: float) -> str | None:
    return _takes_plain(score_TE) or native.needs(ids_TK, (torch.int64,), "ids")


def takes_swiglu(gate_TF: Tensor, up_TF: Tensor, limit: float) -> str | None:
    if gate_TF.shape != up_TF.shape:
        return f"gate and up have shapes {list(gate_TF.shape)} and {list(up_TF.shape)}"
    return _takes_float32(gate_TF, up_TF)


def _takes_plain(*tensors: Tensor) -> str | None:
    return _takes_float32(*tensors) or (
        None if all(t.is_contiguous() for t in tensors) else "a tensor is not contiguous"
    )


def _takes_float32(*tensors: Tensor) -> str | None:
    return next((why for t in tensors if (why := native.needs(t, (torch.float32,), "a tensor"))), None)


def affinity(logits_TE: Tensor) -> Tensor:
    """See dsv4.kernels.moe.affinity."""
    y_TE = torch.empty_like(logits_TE)
    _function("affinity")(logits_TE.data_ptr(), y_TE.data_ptr(), y_TE.numel(), torch.get_num_threads())
    return y_TE


def choose_experts(score_TE: Tensor, bias_E: Tensor, k: int) -> Tensor:
    """See dsv4.kernels.moe.choose_experts."""
    T, E = score_TE.shape
    if not 0 < k <= E:
        raise ValueError(f"choose_experts: k must be in 1..{E}, got {k}")
    ids_TK = torch.empty(T, k, dtype=torch.int64)
    _function("choose_experts")(
        score_TE.data_ptr(), bias_E.data_ptr(), ids_TK.data_ptr(), T, E, k, torch.get_num_threads()
    )
    return ids_TK


def expert_weights(score_TE: Tensor, ids_TK: Tensor, scale: float) -> Tensor:
    """See dsv4.kernels.moe.expert_weights."""
    (T, E), ids_TK = score_TE.shape, ids_TK.contiguous()
    weight_TK = torch.empty(ids_TK.shape, dtype=torch.float32)
    _function("expert_weights")(
        score_TE.data_ptr(), ids_TK.data_ptr(), weight_TK.data_ptr(), T, E, ids_TK.shape[1], scale
    )
    return weight_TK


def clamped_swiglu(gate_TF: Tensor, up_TF: Tensor, limit: float) -> Tensor:
    """See dsv4.kernels.moe.clamped_swiglu."""
    gate_TF, up_TF = gate_TF.contiguous(), up_TF.contiguous()
    y_TF = torch.empty_like(gate_TF)
    _function("clamped_swiglu")(
        gate_TF.data_ptr(), up_TF.data_ptr(), y_TF.data_ptr(), y_TF.numel(), limit, torch.get_num_threads()
    )
    return y_TF


def takes_training(
    x_TD: Tensor,
    ids_TK: Tensor,
    weight_TK: Tensor,
    w1: Sequence[Tensor],
    w2: Sequence[Tensor],
    w3: Sequence[Tensor],
    *_: object,
) -> str | None:
    """Why `NativeProducts` does not take these; None if it does."""
    return _takes_float32(x_TD, weight_TK, *w1, *w2, *w3)


class NativeProducts:
    """See `dsv4.kernels.moe.torch.Products`: products of all experts in one call. All tensors are float32."""

    def __init__(self, assignments: Assignments) -> None:
        self._counts: list[int] = assignments.counts_E.tolist()
        first = [0, *accumulate(self._counts)]
        self._first = (_LONGS * len(first))(*first)

    def rows(self, a_AK: Tensor, weights: Sequence[Tensor], out_AN: Tensor, *, turned: bool, add: bool = False) -> None:
        """out = (or += with `add`) each expert's rows of a times weight[N, K]^T; with `turned` times weight[K, N]."""
        a_AK, weights = a_AK.contiguous(), [w.contiguous() for w in weights]
        sizes = len(self._counts), out_AN.shape[1], a_AK.shape[1]
        pointers = native.pointer(a_AK), _addresses(weights), native.pointer(out_AN), self._first
        _function("grouped_rows")(*pointers, *sizes, turned, add, torch.get_num_threads())

    def weights(self, a_AN: Tensor, b_AK: Tensor) -> list[Tensor | None]:
        """a^T b over each expert's rows; None for an expert without rows."""
        a_AN, b_AK = a_AN.contiguous(), b_AK.contiguous()
        sizes = len(self._counts), a_AN.shape[1], b_AK.shape[1]
        made = [a_AN.new_empty(sizes[1:]) if count else None for count in self._counts]
        pointers = native.pointer(a_AN), native.pointer(b_AK), _addresses(made), self._first
        _function("grouped_weights")(*pointers, *sizes, torch.get_num_threads())
        return made

    def swiglu(self, gate_AF: Tensor, up_AF: Tensor, limit: float) -> Tensor:
        """silu(gate) * up, clamped."""
        return clamped_swiglu(gate_AF, up_AF, limit)

    def swiglu_backward(
        self, gate_AF: Tensor, up_AF: Tensor, grad_AF: Tensor, weight_A: Tensor, limit: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """hidden = swiglu * weight, and the gradients of gate, up and weight given that of hidden."""
        hidden_AF, d_gate_AF, d_up_AF, d_weight_A = _swiglu_backward(gate_AF, up_AF, grad_AF, weight_A, limit)
        assert hidden_AF is not None
        assert d_weight_A is not None
        return hidden_AF, d_gate_AF, d_up_AF, d_weight_A


def swiglu_backward(
    gradients: tuple[Tensor], kept: Sequence[Tensor], gate_TF: Tensor, up_TF: Tensor, limit: float
) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up given that of `clamped_swiglu`."""
    _, d_gate_TF, d_up_TF, _ = _swiglu_backward(gate_TF, up_TF, gradients[0], None, limit)
    return d_gate_TF, d_up_TF


def _addresses(tensors: Sequence[Tensor | None]) -> Any:
    return (_POINTERS * len(tensors))(*(native.pointer(t) for t in tensors))


def _swiglu_backward(
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
