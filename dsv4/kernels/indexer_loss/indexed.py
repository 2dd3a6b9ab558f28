"""What the indexer's loss is given.

Legend: T tokens, H heads, C head dim, W window rows, J indexer heads, I indexer dim, M entry rows, K choices per token.
"""

from dataclasses import dataclass

from torch import Tensor

from dsv4.kernels.sparse_attention.keys import KeySet, PageTable


@dataclass(frozen=True, slots=True)
class IndexedAttention:
    """The scores of one CSA layer's indexer and the rows that its attention read. The indexer's tensors carry gradients
    to its own parameters alone; the attention's are detached."""

    layer: int
    index_TJI: Tensor  # indexer queries, rotated
    weight_TJ: Tensor  # their head weights, scales folded in
    index_MI: Tensor  # indexer keys of all entries
    pages: PageTable  # where each sequence's entries lie, among index_MI and entries_MC alike
    visible_T: Tensor
    chosen_TK: Tensor | None  # entry numbers the attention read, -1 = none; None = all visible ones
    query_THC: Tensor
    window_WC: Tensor
    entries_MC: Tensor
    keys: KeySet
    sink_H: Tensor
    scale: float
