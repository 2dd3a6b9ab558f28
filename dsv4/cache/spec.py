"""Sizes of the cache, computed before anything is allocated (report 5.2.1, 5.2.2).

A page covers a fixed number of source tokens in every layer, so all layers have the same page borders. A slot holds the
state of a sequence that does not grow with its length: the window, and the tokens that are not in a compressed entry
yet.
"""

from dataclasses import dataclass

from dsv4.cache.format import CacheDtype, RowFormat
from dsv4.config import AttentionKind, LayerSpec, ModelConfig, tail_rows

PAGE_TOKENS = 256


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """Sizes for one model and one format of rows; tails and hidden states are always fp32. drafts: the most tokens that
    a step checks beside the model's own drafts. Raises ValueError when a page does not end on a border of entries in
    every layer."""

    config: ModelConfig
    dtype: CacheDtype
    page_tokens: int = PAGE_TOKENS
    drafts: int = 0

    def __post_init__(self) -> None:
        for ratio in (128, *self.config.compressor_ratios):
            if self.page_tokens % ratio:
                raise ValueError(f"page_tokens must be a multiple of {ratio}, got {self.page_tokens}")

    @property
    def format(self) -> RowFormat:
        return RowFormat(self.config, self.dtype)

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        return (*self.config.layers, *self.config.mtp_layers, *self.config.draft_layers)

    @property
    def taken_back(self) -> int:
        """The most tokens of a step that may be taken back, because they were drafts and wrong: rings have so many rows
        to spare."""
        return max(self.config.taken_back, self.drafts)

    @property
    def window_rows(self) -> int:
        """Rows of a window's ring. A draft block reads `sliding_window` rows before itself, a token one less."""
        return self.config.sliding_window - 1 + self.taken_back + (1 if self.config.dspark else 0)

    @property
    def stream_rows(self) -> int:
        """Rows of the last hidden states that a slot keeps for the prediction block, which may repeat the position
        before the last; 0 without one."""
        return 1 + self.taken_back if self.config.num_nextn_predict_layers else 0

    def tail_rows(self, ratio: int) -> int:
        """Rows of the ring of a compressor's tail."""
        return tail_rows(ratio, self.taken_back)

    def page_bytes(self) -> int:
        """Bytes of one page in all layers: compressed entries and indexer keys of `page_tokens` source tokens."""
        return sum(self._entry_bytes(spec) * (self.page_tokens // spec.ratio) for spec in self.layers if spec.ratio)

    def slot_bytes(self) -> int:
        """Bytes of one slot in all layers: window rows, compressor tails and last hidden states."""
        form = self.format
        window = self.window_rows * form.entry_width * form.dtype.itemsize
        streams = self.stream_rows * self.config.hc_mult * self.config.hidden_size * 4
        return streams + sum(window + self._tail_bytes(spec) for spec in self.layers)

    def pages_for(self, tokens: int) -> int:
        """The number of pages that `tokens` source tokens need."""
        return -(-tokens // self.page_tokens)

    def total_bytes(self, pages: int, slots: int) -> int:
        return pages * self.page_bytes() + slots * self.slot_bytes()

    def _entry_bytes(self, spec: LayerSpec) -> int:
        form = self.format
        width = form.entry_width + (form.index_width if spec.kind is AttentionKind.CSA else 0)
        return width * form.dtype.itemsize

    def _tail_bytes(self, spec: LayerSpec) -> int:
        if not spec.ratio:
            return 0
        values = spec.width(self.config.head_dim)
        if spec.kind is AttentionKind.CSA:
            values += spec.width(self.config.index_head_dim)
        return self.tail_rows(spec.ratio) * 2 * values * 4  # kv and score, fp32
