"""The cache of draft blocks (DSpark): they read the context rows of their stage's ring and keep nothing.

Legend: T tokens, R gathered rows, C head dim.
"""

from collections.abc import Sequence

from torch import Tensor

from dsv4.cache.layers import Place
from dsv4.cache.store import CacheStore, LayerStore
from dsv4.kernels.sparse_attention import PageTable
from dsv4.model.dspark import BlockKeys
from dsv4.model.inputs import Blocks, KeyBuffer, TailName


class DraftCache:
    """One block of `rows` rows for each place, at the position after those of its cache (`starts`)."""

    def __init__(self, store: CacheStore, places: Sequence[Place], starts: Sequence[int], rows: int) -> None:
        ring, window = store.spec.window_rows, store.config.sliding_window
        contexts = []
        for place, start in zip(places, starts, strict=True):
            first = max(0, start - window, min(place.window_from, start))
            contexts.append([place.slot * ring + position % ring for position in range(first, start)])
        self.store, self.keys = store, BlockKeys(contexts, rows, store.layers[0].window_SWX.device)

    def layer(self, index: int) -> "DraftLayer":
        return DraftLayer(self, self.store.layers[index])


class DraftLayer:
    """One stage of a DraftCache: implements dsv4.model.inputs.LayerCache as far as a stage calls it."""

    def __init__(self, cache: DraftCache, layer: LayerStore) -> None:
        self._cache, self._layer = cache, layer

    def join_tail(self, name: TailName, rows_TW: Tensor, blocks: Blocks) -> Tensor:
        raise NotImplementedError("draft stages have no compressor")

    def append_index(self, entries_NI: Tensor, blocks: Blocks) -> tuple[Tensor, PageTable]:
        raise NotImplementedError("draft stages have no indexer")

    def append(self, kv_TC: Tensor, entries_NC: Tensor | None, blocks: Blocks | None) -> KeyBuffer:
        """The keys of the blocks. Their own rows are read as the cache would hold them."""
        keys, form = self._cache.keys, self._cache.store.spec.format
        context_RX = self._layer.window_SWX.flatten(0, 1).index_select(0, keys.context_R)
        own_TC = form.read_entry(form.store_entry(kv_TC), kv_TC.dtype)
        return keys.join(form.read_entry(context_RX, kv_TC.dtype), own_TC)
