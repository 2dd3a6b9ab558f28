"""Mixture of experts on the CPU: a whole layer of experts in one native call, and the routing.

T tokens, D hidden size, E experts, K experts per token, F expert inner size.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from dsv4.kernels import native
from dsv4.kernels.matmul.cpu import BF16, F32, weight_kind
from dsv4.kernels.moe.weights import ExpertWeights

_DTYPE_OF_KIND = {F32: torch.float32, BF16: torch.bfloat16}
_POINTERS, _INTS, _LONGS = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64


@dataclass(frozen=True, slots=True)
class _Layer:
    """What the native call needs of an ExpertWeights."""

    pointers_6E: Tensor  # addresses of w1 w2 w3 s1 s2 s3; 0 where there is no scale
    rows: tuple[int, ...]  # addresses of the six rows of that table
    inner: int
    kind: int
    shared_kind: int  # -1: no shared expert


@cache
def _function(name: str) -> Callable[..., int]:
    arguments, result = {
        "expert_mlp": (
            [_POINTERS] * 10 + [_LONGS] * 5 + [_INTS] * 4 + [ctypes.c_float] + [_INTS] * 2,
            _LONGS,
        ),
        "affinity": ([_POINTERS] * 2 + [_LONGS, _INTS], None),
        "choose_experts": ([_POINTERS] * 3 + [_LONGS] * 3 + [_INTS], None),
        "expert_weights": ([_POINTERS] * 3 + [_LONGS] * 3 + [ctypes.c_float], None),
        "clamped_swiglu": ([_POINTERS] * 3 + [_LONGS, ctypes.c_float, _INTS], None),
    }[name]
    return native.function(f"dsv4_{name}", arguments, result)


def _kind_of(weights: ExpertWeights, experts: Sequence[int]) -> int | None:
    """The one kind of all matrices of these experts, contiguous on the CPU; None if there is no such kind."""
    kinds = set()
    for part, scales in ((weights.w1, weights.s1), (weights.w2, weights.s2), (weights.w3, weights.s3)):
        for e in experts:
            w, s = part[e], scales[e]
            fits = all(t is None or (t.is_contiguous() and t.device.type == "cpu") for t in (w, s))
            kinds.add(weight_kind(w, s) if fits else None)
    return kinds.pop() if len(kinds) == 1 else None


def packed_layer(weights: ExpertWeights) -> _Layer | None:
    """Built once for each ExpertWeights; None where the native code cannot take it."""
    if "cpu" not in weights.native:
        kind = _kind_of(weights, range(weights.routed))
        shared = _kind_of(weights, [weights.routed]) if weights.shared else -1
        layer = None
        if kind is not None and shared is not None:
            lists = (weights.w1, weights.w2, weights.w3, weights.s1, weights.s2, weights.s3)
            table_6E = torch.tensor([[0 if t is None else t.data_ptr() for t in part] for part in lists])
            rows = tuple(row.data_ptr() for row in table_6E)
            layer = _Layer(table_6E, rows, weights.w1[0].shape[0], kind, shared)
        weights.native["cpu"] = layer
    return weights.native["cpu"]  # pyrefly: ignore


def usable(x_TD: Tensor, ids_TK: Tensor, weight_TK: Tensor, weights: ExpertWeights) -> bool:
    """Whether `expert_mlp` takes these: float weights must have x's dtype, routed experts one format."""
    if not native.usable(x_TD, ids_TK, weight_TK) or x_TD.dtype not in (torch.float32, torch.bfloat16):
        return False
    layer = packed_layer(weights)
    return layer is not None and all(
        _DTYPE_OF_KIND.get(kind, x_TD.dtype) == x_TD.dtype for kind in (layer.kind, layer.shared_kind)
    )


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
    if bad != -1:
        raise IndexError(f"expert_mlp: an expert id is not in 0..{weights.routed - 1}")
    return out_TD


def plain(*tensors: Tensor) -> bool:
    """Whether the routing functions take these: float32 on the CPU, contiguous, no gradient recorded."""
    return native.usable(*tensors) and all(t.dtype == torch.float32 and t.is_contiguous() for t in tensors)


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
    y_TF = torch.empty_like(gate_TF)
    _function("clamped_swiglu")(
        gate_TF.data_ptr(), up_TF.data_ptr(), y_TF.data_ptr(), y_TF.numel(), limit, torch.get_num_threads()
    )
    return y_TF
