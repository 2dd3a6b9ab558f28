"""Formats of a cached row: plain fp32 or bf16 values, or the release's packing (report 5.2.1).

Legend: N stored rows, C head dim, I indexer dim, X stored width.
"""

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from dsv4.config import Mode, ModelConfig
from dsv4.kernels import rows
from dsv4.model.transformer import Transformer

CacheDtype = Mode
_PLAIN = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class RowFormat:
    """Converts rows to their stored form and back. `release` packs an entry into 584 bytes and an indexer key into 68
    (with V4's dims). The packing is lossless for a model in release numerics and a rounding for any other.

    Raises ValueError for an unknown name.
    """

    config: ModelConfig
    name: CacheDtype

    def __post_init__(self) -> None:
        if self.name not in get_args(CacheDtype):
            raise ValueError(f"cache dtype must be one of {', '.join(get_args(CacheDtype))}, got {self.name!r}")

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the stored tensors."""
        return _PLAIN.get(self.name, torch.uint8)

    @property
    def entry_width(self) -> int:
        """Stored values (bytes for `release`) per window row or compressed entry."""
        c = self.config
        return rows.entry_bytes(c.head_dim, c.qk_rope_head_dim) if self.name == "release" else c.head_dim

    @property
    def index_width(self) -> int:
        """Stored values (bytes for `release`) per indexer key."""
        c = self.config
        return rows.index_bytes(c.index_head_dim) if self.name == "release" else c.index_head_dim

    def store_entry(self, kv_NC: Tensor) -> Tensor:
        """Entries or window rows in stored form, [N, X]."""
        if self.name == "release":
            return rows.pack_entry(kv_NC, self.config.qk_rope_head_dim)
        return kv_NC.to(self.dtype)

    def read_entry(self, rows_NX: Tensor, dtype: torch.dtype) -> Tensor:
        """The values of stored rows, [N, C] in `dtype`."""
        if self.name == "release":
            return rows.unpack_entry(rows_NX, self.config.head_dim, self.config.qk_rope_head_dim, dtype)
        return rows_NX.to(dtype)

    def store_index(self, key_NI: Tensor) -> Tensor:
        """Indexer keys in stored form, [N, X]."""
        return rows.pack_index(key_NI) if self.name == "release" else key_NI.to(self.dtype)


def default_cache_dtype(model: Transformer) -> CacheDtype:
    """The format in which the model computes rows: `release` in release numerics, else that of the activations."""
    if model.numerics.simulate:
        return "release"
    return "bf16" if model.numerics.activations == torch.bfloat16 else "fp32"
