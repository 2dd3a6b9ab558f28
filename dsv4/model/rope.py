"""The two rotary tables of V4 (report 2.3): plain in layers without a compressor, long-range with YaRN in the others.

Legend: T tokens, N finished entries, P frequency pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4.config import ModelConfig
from dsv4.kernels.rope import frequencies, rotation
from dsv4.model.inputs import Sequences


@dataclass(frozen=True, slots=True)
class Rotations:
    """cos and sin for one step, [2, ..., P] fp32."""

    plain_2TP: Tensor  # sliding-window layers
    long_2TP: Tensor  # everything in layers with a compressor
    entries: dict[int, Tensor]  # by ratio: [2, N, P] at each new entry's first token

    def of_tokens(self, ratio: int) -> Tensor:
        return self.long_2TP if ratio else self.plain_2TP


class RotaryTables:
    """Frequencies of both tables; `step` turns them into a step's rotations. Holds no parameters.

    yarn=False leaves the config's scaling out of the long-range table: training stages of short sequences.
    """

    def __init__(self, config: ModelConfig, *, yarn: bool = True) -> None:
        scaling = config.yarn if yarn else None
        with torch.device("cpu"):
            self.plain_P = frequencies(config.qk_rope_head_dim, config.rope_theta)
            self.long_P = frequencies(config.qk_rope_head_dim, config.compress_rope_theta, scaling)

    def plain(self, positions_T: Tensor) -> Tensor:
        """Rotations of layers without a compressor, [2, T, P] fp32."""
        return rotation(self.plain_P.to(positions_T.device), positions_T)

    def step(self, sequences: Sequences) -> Rotations:
        long_P = self.long_P.to(sequences.positions_T.device)
        return Rotations(
            self.plain(sequences.positions_T),
            rotation(long_P, sequences.positions_T),
            {ratio: rotation(long_P, blocks.position_N) for ratio, blocks in sequences.blocks.items()},
        )
