"""The tensor types of ggml: numbers in a file, and how many bytes hold how many values of a row.

The types that pack values are read by `blocks`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch


@dataclass(frozen=True, slots=True)
class GgmlType:
    """A type of tensor. values: how many values of a row one block holds; nbytes: its size. dtype: torch's type for the
    same numbers, None for a type that packs values."""

    number: int
    name: str
    values: int
    nbytes: int
    dtype: torch.dtype | None = None

    def bytes_of(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor whose rows are whole blocks."""
        return math.prod(shape) // self.values * self.nbytes


F32 = GgmlType(0, "F32", 1, 4, torch.float32)
F16 = GgmlType(1, "F16", 1, 2, torch.float16)
BF16 = GgmlType(30, "BF16", 1, 2, torch.bfloat16)
I32 = GgmlType(26, "I32", 1, 4, torch.int32)
Q8_0 = GgmlType(8, "Q8_0", 32, 34)
MXFP4 = GgmlType(39, "MXFP4", 32, 17)
_PLAIN = (
    F32,
    F16,
    BF16,
    GgmlType(24, "I8", 1, 1, torch.int8),
    GgmlType(25, "I16", 1, 2, torch.int16),
    I32,
    GgmlType(27, "I64", 1, 8, torch.int64),
    GgmlType(28, "F64", 1, 8, torch.float64),
)
# number, name, values and bytes of a block
_PACKED = (
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (9, "Q8_1", 32, 40),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (29, "IQ1_M", 256, 56),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
    (42, "Q2_0", 64, 18),
)
TYPES: Mapping[int, GgmlType] = MappingProxyType(
    {kind.number: kind for kind in (*_PLAIN, Q8_0, MXFP4, *(GgmlType(*row) for row in _PACKED))}
)
