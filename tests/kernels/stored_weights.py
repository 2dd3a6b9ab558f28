"""Weights in every stored precision."""

import torch
from torch import Tensor

from dsv4.kernels import quant

KINDS = ["float32", "bfloat16", "fp8", "fp8-float32", "fp4"]


def stored(kind: str, w_NK: Tensor) -> tuple[Tensor, Tensor | None]:
    """A weight and its scale."""
    if kind == "fp4":
        return quant.quantize_fp4_weight(w_NK)
    if kind.startswith("fp8"):
        return quant.quantize_fp8_weight(w_NK, "float32" if kind == "fp8-float32" else "ue8m0")
    return w_NK.to(getattr(torch, kind)), None


def columns(kind: str, K: int) -> int:
    """K, or for FP4 the next multiple of its blocks."""
    return -(-K // 32) * 32 if kind == "fp4" else K
