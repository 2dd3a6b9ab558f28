"""What a DeepSeek-V4 model is: `ModelConfig`, read from config files of three dialects. No torch."""

from dsv4.config.drafts import DraftChoice
from dsv4.config.dspark import DSpark
from dsv4.config.model import (
    CSA_RATIO,
    HCA_RATIOS,
    AttentionKind,
    LayerSpec,
    ModelConfig,
    Routing,
    Yarn,
    overlaps,
    tail_length,
    tail_rows,
)
from dsv4.config.modes import Mode, ModeChoice
from dsv4.config.numa import NumaChoice

__all__ = [
    "CSA_RATIO",
    "HCA_RATIOS",
    "AttentionKind",
    "DSpark",
    "DraftChoice",
    "LayerSpec",
    "Mode",
    "ModeChoice",
    "ModelConfig",
    "NumaChoice",
    "Routing",
    "Yarn",
    "overlaps",
    "tail_length",
    "tail_rows",
]
