"""x @ w.T for float, FP8 and FP4 weights, in plain torch.

Legend: T tokens, K input columns, N output rows, B blocks along K.
The quantised products accumulate as the released kernels do (spec: checkpoint.md section 3): one float32
partial per block of K, scaled, then added.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv4.kernels.autograd import node
from dsv4.kernels.quant import (
    FP4_BLOCK,
    FP8_BLOCK,
    dequantize_weight,
    packed_fp4_to_float,
    quantize_fp8,
)


def linear(
    x_TK: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    quantize_activations: bool,
    accumulator: torch.dtype = torch.float32,
) -> Tensor:
    """See `dsv4.kernels.matmul.linear`; x may have any leading dimensions.

    `accumulator` is the dtype that the sum over blocks of K is rounded to after each block. The released
    kernels keep float32; the recorded products of the test data kept bfloat16, and are reproduced with that.
    """
    if scale is None:
        if x_TK.dtype == weight.dtype:
            return F.linear(x_TK, weight)
        wide = torch.promote_types(x_TK.dtype, weight.dtype)
        return F.linear(x_TK.to(wide), weight.to(wide)).to(x_TK.dtype)
    if not quantize_activations:
        return F.linear(x_TK, dequantize_weight(weight, scale, x_TK.dtype))
    q_TK, scale_TB = quantize_fp8(x_TK.reshape(-1, x_TK.shape[-1]))
    multiply = _fp4_matmul if weight.dtype == torch.int8 else _fp8_matmul
    y_TN = multiply(q_TK, scale_TB.to(torch.float32), weight, scale, accumulator)
    return y_TN.to(x_TK.dtype).reshape(*x_TK.shape[:-1], weight.shape[0])


def differentiable_linear(x_TK: Tensor, weight: Tensor, scale: Tensor | None, quantize_activations: bool) -> Tensor:
    """`linear` with gradients: torch's own for a float weight, `input_gradient` for a quantised one."""
    run = linear if scale is None else _quantised_node
    return run(x_TK, weight, scale, quantize_activations)


def input_gradient(
    gradients: Sequence[Tensor], kept: object, x_TK: Tensor, weight: Tensor, scale: Tensor, *_: object
) -> tuple[Tensor]:
    """Of the input of a product with a quantised weight, in float32: the casts of x count as the identity."""
    return ((gradients[0].to(torch.float32) @ dequantize_weight(weight, scale)).to(x_TK.dtype),)


def _fp8_matmul(q_TK: Tensor, scale_TB: Tensor, w_NK: Tensor, scale: Tensor, accumulator: torch.dtype) -> Tensor:
    T, N = q_TK.shape[0], w_NK.shape[0]
    scale_NB = scale.to(torch.float32).repeat_interleave(FP8_BLOCK, dim=0)[:N]
    acc_TN = torch.zeros(T, N, dtype=accumulator, device=q_TK.device)
    for b in range(scale_TB.shape[1]):
        columns = slice(b * FP8_BLOCK, (b + 1) * FP8_BLOCK)
        partial_TN = q_TK[:, columns].to(torch.float32) @ w_NK[:, columns].to(torch.float32).T
        acc_TN += partial_TN * (scale_TB[:, b, None] * scale_NB[None, :, b])
    return acc_TN


def _fp4_matmul(q_TK: Tensor, scale_TB: Tensor, packed: Tensor, scale: Tensor, accumulator: torch.dtype) -> Tensor:
    """Blocks of 32 columns. Scales are powers of two: applying them before the product changes nothing."""
    T, N = q_TK.shape[0], packed.shape[0]
    per_scale = FP8_BLOCK // FP4_BLOCK
    acc_TN = torch.zeros(T, N, dtype=accumulator, device=q_TK.device)
    for b in range(scale_TB.shape[1]):
        # Unpack one FP8 block at a time: four FP4 blocks share the activation's scale.
        columns = slice(b * FP8_BLOCK // 2, (b + 1) * FP8_BLOCK // 2)
        scale_NB = scale[:, b * per_scale : (b + 1) * per_scale].to(torch.float32)
        w_NBK = packed_fp4_to_float(packed[:, columns]).unflatten(-1, (-1, FP4_BLOCK)) * scale_NB.unsqueeze(-1)
        q = q_TK[:, b * FP8_BLOCK : (b + 1) * FP8_BLOCK].to(torch.float32) * scale_TB[:, b, None]
        for i in range(w_NBK.shape[1]):
            acc_TN += q[:, i * FP4_BLOCK : (i + 1) * FP4_BLOCK] @ w_NBK[:, i].T
    return acc_TN


_quantised_node = node(linear, input_gradient)
