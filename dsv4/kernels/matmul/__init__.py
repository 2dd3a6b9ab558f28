"""The linear layer's product. The weight's dtype decides the numerics, so the model needs one `Linear` only.

Legend: T tokens, K input columns, N output rows.
"""

import torch
from torch import Tensor

from dsv4.kernels.autograd import node
from dsv4.kernels.backend import Implementation, dispatch
from dsv4.kernels.matmul import native, reference
from dsv4.kernels.quant import FP4_BLOCK, FP8_BLOCK

__all__ = ["linear"]


def linear(
    x_TK: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    *,
    quantize_activations: bool = True,
    impl: str | None = None,
) -> Tensor:
    """x [..., K] times the transposed weight -> [..., N] in x's dtype.

    weight float [N, K], no scale        F.linear; x and weight may differ in dtype, y has x's
    weight float8_e4m3fn [N, K]          scale [ceil(N/128), ceil(K/128)], e8m0 or float32
    weight int8 [N, K/2], packed FP4     scale [N, K/32], e8m0

    With a quantised weight x is cast to FP8 in blocks of 128 columns and the product is block-scaled (report
    5.2.1, spec checkpoint.md section 3). `quantize_activations=False` multiplies x with the exactly
    dequantised weight instead. K need not divide by 128. Sums are float32. Differentiable in x and in a float weight;
    a quantised weight has no gradient, and that of x is the one of the dequantised weight, as if x had not been cast
    (report 5.2.1: straight through). Raises ValueError when shapes, dtype
    and scale do not fit together.

    impl="native" reads the weight in place; a row of y depends on its own row of x alone, bit for bit, for every T and
    every number of threads. It reads a NaN byte of an e4m3 weight as 480; the casts never write such a byte.
    """
    _check(x_TK, weight, scale)
    return dispatch("linear", impl, _LINEAR, x_TK, weight, scale, quantize_activations)


def _check(x_TK: Tensor, weight: Tensor, scale: Tensor | None) -> None:
    K = x_TK.shape[-1]
    N, columns = weight.shape
    expected: tuple[int, ...] | None
    if weight.dtype == torch.float8_e4m3fn:
        expected = (-(-N // FP8_BLOCK), -(-K // FP8_BLOCK))
    elif weight.dtype == torch.int8:
        columns *= 2
        if K % FP4_BLOCK:
            raise ValueError(f"linear: an FP4 weight needs a multiple of {FP4_BLOCK} input columns, got {K}")
        expected = (N, K // FP4_BLOCK)
    elif weight.dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        expected = None
    else:
        raise ValueError(f"linear: weight must be float, float8_e4m3fn or packed int8, got {weight.dtype}")
    if columns != K:
        raise ValueError(f"linear: x has {K} columns, the weight {columns}")
    got = None if scale is None else tuple(scale.shape)
    if got != expected:
        raise ValueError(f"linear: weight {list(weight.shape)} {weight.dtype} needs scale {expected}, got {got}")


def _only_quantised(x_TK: Tensor, weight: Tensor, scale: Tensor | None, *_: object) -> str | None:
    return "its node has no gradient for a float weight" if scale is None else None


_LINEAR = (
    Implementation(
        "native", native.linear, native.takes, node(native.linear, reference.input_gradient), _only_quantised
    ),
    Implementation("reference", reference.linear, differentiable=reference.differentiable_linear),
)
