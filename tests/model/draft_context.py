"""Draft blocks (DSpark) without a cache: what their rows read, straight from the context rows of whole sequences.

Legend: T tokens, C head dim, N entries.
"""

from torch import Tensor

from dsv4.config import ModelConfig
from dsv4.model.dspark import BlockKeys
from dsv4.model.inputs import KeyBuffer


class ContextOnly:
    """The cache of draft blocks over the context rows of whole sequences."""

    def __init__(self, config: ModelConfig, rows: list[Tensor], keys: BlockKeys) -> None:
        self._first, self._rows, self._keys, self._index = config.num_hidden_layers, rows, keys, 0

    def layer(self, index: int) -> "ContextOnly":
        self._index = index - self._first
        return self

    def append(self, kv_TC: Tensor, entries_NC: object, blocks: object) -> KeyBuffer:
        assert entries_NC is None
        return self._keys.join(self._rows[self._index].index_select(0, self._keys.context_R), kv_TC)
