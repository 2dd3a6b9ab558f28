"""Cache sizes as arithmetic, before anything is allocated (report 5.2.1, 5.2.2).

A page covers a fixed number of source tokens in every layer at once, so all layers agree on its borders. A slot holds
what one sequence keeps whatever its length: the window and the tokens the compressors have not finished with.
"""

from dataclasses import dataclass

from dsv4.config import CSA_RATIO, AttentionKind, LayerSpec, ModelConfig
from dsv4.model.accounting import entry_bytes, index_bytes

PAGE_TOKENS = 256


def tail_rows(ratio: int) -> int:
    """The longest tail a compressor keeps: an open block, and with overlap the closed block before it."""
    return 2 * ratio - 1 if ratio == CSA_RATIO else ratio - 1


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """Sizes for one model. `itemsize` is bytes per stored value (4 for fp32, 2 for bf16); tails are always fp32."""

    config: ModelConfig
    itemsize: int
    page_tokens: int = PAGE_TOKENS

    def __post_init__(self) -> None:
        for ratio in self.config.compressor_ratios:
            if self.page_tokens % ratio:
                raise ValueError(f"page_tokens must be a multiple of {ratio}, got {self.page_tokens}")

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        return (*self.config.layers, *self.config.mtp_layers)

    def page_bytes(self) -> int:
        """One page, all layers: compressed entries and indexer keys of `page_tokens` source tokens."""
        return sum(self._entry_bytes(spec) * (self.page_tokens // spec.ratio) for spec in self.layers if spec.ratio)

    def slot_bytes(self) -> int:
        """One sequence's window rows and compressor tails, all layers."""
        window = self.config.sliding_window * entry_bytes(self.config, self.itemsize)
        return sum(window + self._tail_bytes(spec) for spec in self.layers)

    def pages_for(self, tokens: int) -> int:
        """Pages that `tokens` source tokens need."""
        return -(-tokens // self.page_tokens)

    def total_bytes(self, pages: int, slots: int) -> int:
        return pages * self.page_bytes() + slots * self.slot_bytes()

    def _entry_bytes(self, spec: LayerSpec) -> int:
        index = index_bytes(self.config, self.itemsize) if spec.kind is AttentionKind.CSA else 0
        return entry_bytes(self.config, self.itemsize) + index

    def _tail_bytes(self, spec: LayerSpec) -> int:
        if not spec.ratio:
            return 0
        values = self.config.head_dim
        if spec.kind is AttentionKind.CSA:
            values = 2 * (self.config.head_dim + self.config.index_head_dim)
        return tail_rows(spec.ratio) * 2 * values * 4  # kv and score, fp32
