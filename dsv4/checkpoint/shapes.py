"""Sizes that a layout or the release's numerics cannot hold, checked before a model is loaded, trained or written."""

from dsv4.checkpoint.names import Layout
from dsv4.config import AttentionKind, ModelConfig
from dsv4.kernels.quant import FP4_BLOCK


def shape_problems(
    config: ModelConfig, *, layout: Layout | None = None, release_numerics: bool = False
) -> tuple[str, ...]:
    """Why a model of these sizes cannot be stored in `layout` or run in the release's numerics; empty when it can.

    layout: the layout of the saved model; None skips this check. release_numerics: whether the model computes with
    quantised cache rows, as mode "release" and training with `qat_from` do. Each sentence names a field and its
    required value.
    """
    problems: list[str] = []
    indexed = any(layer.kind is AttentionKind.CSA for layer in config.layers)
    if release_numerics and indexed and config.index_head_dim % FP4_BLOCK:
        problems.append(
            f"index_head_dim must be a multiple of {FP4_BLOCK} in release numerics and for qat_from "
            f"(the indexer's FP4 blocks), got {config.index_head_dim}"
        )
    if layout is not None and layout.experts == "fp4":
        for name in ("hidden_size", "moe_intermediate_size"):
            width = getattr(config, name)
            if width % FP4_BLOCK:
                problems.append(
                    f"{name} must be a multiple of {FP4_BLOCK} in layout {layout.name} "
                    f"(the FP4 blocks of routed experts), got {width}"
                )
    return tuple(problems)


def check_shapes(config: ModelConfig, *, layout: Layout | None = None, release_numerics: bool = False) -> None:
    """Raise ValueError with everything that `shape_problems` finds."""
    problems = shape_problems(config, layout=layout, release_numerics=release_numerics)
    if problems:
        raise ValueError("; ".join(problems))
