"""The end of a training run: its model as a folder that every verb loads."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from dsv4.checkpoint import save_checkpoint
from dsv4.checkpoint.names import Layout
from dsv4.config import ModelConfig
from dsv4.files import whole_folder


def export_model(
    place: Path, config: ModelConfig, weights: Mapping[str, Tensor], layout: Layout, text_side: Mapping[str, bytes]
) -> Path:
    """Write PLACE/model; an earlier one stays until the new one is whole. text_side: the tokenizer's files."""
    if layout.name == "release":
        config = config.with_changes(quantized=True, expert_dtype="fp4")
    with whole_folder(place / "model") as folder:
        save_checkpoint(folder, config, weights, layout, extra_files=text_side)
    return place / "model"
