"""The tensors of a cache: per layer, pages of entries and slots of window rows and tails.

S slots, W window rows, C entry dim, I indexer dim, P pages, m tokens per entry, F tail rows, X tail width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4.cache.pages import FreeList
from dsv4.cache.spec import CacheSpec, tail_rows
from dsv4.config import AttentionKind, LayerSpec, ModelConfig
from dsv4.model.inputs import TailName


@dataclass(frozen=True, slots=True)
class LayerStore:
    """One layer's tensors. Their content is undefined until written; readers mask what they may not see."""

    window_SWC: Tensor
    entries_MC: Tensor | None  # M = pages * entries per page
    index_MI: Tensor | None
    tails: dict[TailName, Tensor]  # [S, F, X] fp32


class CacheStore:
    """All layers' tensors and the free lists of pages and slots. Memory is committed as it is first written.

    tokens: source tokens that fit in all sequences together, rounded up to whole pages. sequences: slots.
    """

    def __init__(
        self, config: ModelConfig, dtype: torch.dtype, *, tokens: int, sequences: int, device: str = "cpu"
    ) -> None:
        self.config = config
        self.spec = CacheSpec(config, dtype.itemsize)
        self.pages = FreeList(self.spec.pages_for(tokens), "pages")
        self.slots = FreeList(sequences, "slots")
        self.layers = [self._layer(spec, dtype, torch.device(device)) for spec in self.spec.layers]

    @property
    def bytes(self) -> int:
        """What the tensors take, counted from the tensors themselves."""
        return sum(
            t.numel() * t.element_size()
            for layer in self.layers
            for t in (layer.window_SWC, layer.entries_MC, layer.index_MI, *layer.tails.values())
            if t is not None
        )

    def check_integrity(self) -> bool:
        """True when nothing is taken: what an idle engine must look like."""
        return self.pages.free == self.pages.count and self.slots.free == self.slots.count

    def _layer(self, spec: LayerSpec, dtype: torch.dtype, device: torch.device) -> LayerStore:
        c, slots = self.config, self.slots.count
        window = torch.empty(slots, c.sliding_window, c.head_dim, dtype=dtype, device=device)
        if not spec.ratio:
            return LayerStore(window, None, None, {})
        rows = self.pages.count * (self.spec.page_tokens // spec.ratio)
        is_csa = spec.kind is AttentionKind.CSA
        widths: dict[TailName, int] = {"main": 2 * c.head_dim * (2 if is_csa else 1)}
        if is_csa:
            widths["index"] = 4 * c.index_head_dim
        tails = {
            name: torch.empty(slots, tail_rows(spec.ratio), width, device=device) for name, width in widths.items()
        }
        return LayerStore(
            window,
            torch.empty(rows, c.head_dim, dtype=dtype, device=device),
            torch.empty(rows, c.index_head_dim, dtype=dtype, device=device) if is_csa else None,
            tails,
        )
