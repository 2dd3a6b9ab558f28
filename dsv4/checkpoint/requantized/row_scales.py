"""FP8 or int8 weights with one scale per row or one for the whole weight: value = weight * weight_scale.

compressed-tensors (FP8, FP8_DYNAMIC, W8A8) and ModelOpt (FP8) write them. FP8 with a scale per 128x128 tile is the
release's own form under another name: see `recognise`.
"""

import torch
from torch import Tensor

from dsv4.checkpoint.requantized.method import Method, Parts, Shape, Specs, expect

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def _problem(specs: Specs, shape: Shape) -> str | None:
    N = shape[0]
    return expect("weight", specs["weight"], (torch.float8_e4m3fn, torch.int8), shape) or expect(
        "weight_scale", specs["weight_scale"], _FLOATS, (N, 1), (N,), (1,), ()
    )


def _values(parts: Parts, shape: Shape) -> Tensor:
    scale = parts["weight_scale"].to(torch.float32)
    return parts["weight"].to(torch.float32) * (scale.reshape(-1, 1) if scale.numel() > 1 else scale.reshape(()))


ROW_SCALES = Method(
    "FP8 or int8 with row scales",
    frozenset({"weight", "weight_scale"}),
    frozenset({"input_scale"}),
    _problem,
    _values,
)
