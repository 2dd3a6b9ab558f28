"""The numerics of a folder: which mode "auto" means for its weights, and why."""

from collections.abc import Mapping

import torch

from dsv4.checkpoint import BASE, BF16, FP32, RELEASE, RELEASE_FP8, Layout, TensorSpec, shape_problems
from dsv4.config import Mode, ModelConfig

_STORED: dict[Layout, str] = {
    RELEASE: "FP8 and FP4",
    RELEASE_FP8: "FP8",
    BASE: "FP8",
    BF16: "bfloat16",
    FP32: "float32",
}


def choose_mode(config: ModelConfig, layout: Layout, specs: Mapping[str, TensorSpec]) -> tuple[Mode, str]:
    """The mode that computes with a folder's weights as they are stored, and one clause with the reason.

    specs: the stored tensors by name.
    """
    stored = f"the weights are stored in {_STORED[layout]}"
    if layout is FP32:
        return "fp32", stored
    if layout is BF16:
        # bfloat16 would round them
        longer = {torch.float16: "float16", torch.float64: "float64"}
        found = next((longer[spec.dtype] for spec in specs.values() if spec.dtype in longer), None)
        return ("bf16", stored) if found is None else ("fp32", f"weights are stored in {found}")
    problems = shape_problems(config, release_numerics=True)
    return ("bf16", f"{stored}, but {problems[0]}") if problems else ("release", stored)
