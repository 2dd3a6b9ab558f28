"""The tensors of a cache: per layer, pages of entries and slots of rings.

Legend: S slots, W window rows, C head dim, I indexer dim, X stored width, M entry rows, F tail rows, R stream rows, H
residual streams, D hidden size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4.cache.allocator import Allocator
from dsv4.cache.format import CacheDtype
from dsv4.cache.spec import CacheSpec
from dsv4.config import AttentionKind, LayerSpec, ModelConfig
from dsv4.model.inputs import TailName


@dataclass(frozen=True, slots=True)
class LayerStore:
    """One layer's tensors. Their content is undefined until it is written; readers mask the rows that a
    query may not read.

    Window and tails are rings addressed by position, one per slot: the row of position p is row p modulo the ring.
    Rings have rows to spare: taking the last `CacheSpec.taken_back` tokens back needs no work, because no later token
    can see the rows that they overwrote.
    """

    spec: LayerSpec
    window_SWX: Tensor
    entries_MX: Tensor | None  # M = pages * entries per page
    index_MX: Tensor | None
    tails: dict[TailName, Tensor]  # [S, F, X] fp32

    def slot_tensors(self) -> list[Tensor]:
        return [self.window_SWX, *self.tails.values()]

    def page_tensors(self) -> list[Tensor]:
        return [t for t in (self.entries_MX, self.index_MX) if t is not None]


class CacheStore:
    """The tensors of all layers, and the allocators of pages and slots. Memory is committed when it is first written.

    tokens: source tokens of all sequences together, rounded up to whole pages. slots: running sequences and
    snapshots together. device: of the model; on a card memory is committed at once. drafts: as in CacheSpec.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: CacheDtype,
        *,
        tokens: int,
        slots: int,
        device: torch.device | str = "cpu",
        drafts: int = 0,
    ) -> None:
        self.config = config
        self.spec = CacheSpec(config, dtype, drafts=drafts)
        self.pages = Allocator(self.spec.pages_for(tokens), "pages")
        self.slots = Allocator(slots, "slots")
        self.layers = [self._layer(spec, torch.device(device)) for spec in self.spec.layers]
        rows = self.spec.stream_rows
        streams = (slots, rows, config.hc_mult, config.hidden_size) if rows else (slots, 0)
        # the residual streams of the last tokens, for the prediction block; row = position modulo the rows
        self.streams_SRHD = torch.empty(streams, device=device)

    @property
    def bytes(self) -> int:
        """Bytes of all tensors, counted from the tensors themselves."""
        tensors = [t for layer in self.layers for t in (*layer.slot_tensors(), *layer.page_tensors())]
        return sum(t.numel() * t.element_size() for t in (*tensors, self.streams_SRHD))

    def check_integrity(self) -> bool:
        """True when no page and no slot has a user, as in an idle engine without kept prefixes."""
        return self.pages.free == self.pages.count and self.slots.free == self.slots.count

    def slot_views(self, slot: int) -> list[Tensor]:
        """Views of all tensors of one slot, in a fixed order."""
        return [t[slot] for layer in self.layers for t in layer.slot_tensors()] + [self.streams_SRHD[slot]]

    def page_views(self, page: int, tokens: int | None = None) -> list[Tensor]:
        """Views of the rows of the first `tokens` source tokens of a page (default: all), in a fixed order."""
        views = []
        for layer in self.layers:
            if layer.spec.ratio:
                per_page = self.spec.page_tokens // layer.spec.ratio
                rows = per_page if tokens is None else tokens // layer.spec.ratio
                views += [t[page * per_page : page * per_page + rows] for t in layer.page_tensors()]
        return views

    def copy_slot(self, source: int, target: int) -> None:
        for a, b in zip(self.slot_views(source), self.slot_views(target), strict=True):
            b.copy_(a)

    def copy_page(self, source: int, target: int, tokens: int) -> None:
        """Copy the rows of the first `tokens` source tokens."""
        for a, b in zip(self.page_views(source, tokens), self.page_views(target, tokens), strict=True):
            b.copy_(a)

    def _layer(self, spec: LayerSpec, device: torch.device) -> LayerStore:
        c, form, slots = self.config, self.spec.format, self.slots.count
        window = torch.empty(slots, self.spec.window_rows, form.entry_width, dtype=form.dtype, device=device)
        if not spec.ratio:
            return LayerStore(spec, window, None, None, {})
        rows = self.pages.count * (self.spec.page_tokens // spec.ratio)
        is_csa = spec.kind is AttentionKind.CSA
        widths: dict[TailName, int] = {"main": 2 * spec.width(c.head_dim)}
        if is_csa:
            widths["index"] = 2 * spec.width(c.index_head_dim)
        tails = {
            name: torch.empty(slots, self.spec.tail_rows(spec.ratio), width, device=device)
            for name, width in widths.items()
        }
        return LayerStore(
            spec,
            window,
            torch.empty(rows, form.entry_width, dtype=form.dtype, device=device),
            torch.empty(rows, form.index_width, dtype=form.dtype, device=device) if is_csa else None,
            tails,
        )


def to_bytes(views: list[Tensor]) -> bytes:
    """The bytes of tensors, one after another."""
    return b"".join(v.contiguous().view(torch.uint8).cpu().numpy().tobytes() if v.numel() else b"" for v in views)


def from_bytes(data: bytes | memoryview, views: list[Tensor]) -> None:
    """Fill views with bytes of `to_bytes`. Raises ValueError when the sizes differ; then nothing is written."""
    sizes = [v.numel() * v.element_size() for v in views]
    if sum(sizes) != len(data):
        raise ValueError(f"the stored prefix has {len(data)} bytes, {sum(sizes)} are needed")
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8) if len(data) else torch.empty(0, dtype=torch.uint8)
    for view, part in zip(views, flat.split(sizes), strict=True):
        if view.numel():
            view.copy_(part.clone().view(view.dtype).view(view.shape))
