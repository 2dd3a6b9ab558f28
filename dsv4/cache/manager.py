"""The owner of a request's pages and slot, from its admission to its end, and of the prefixes kept for later ones."""

from array import array
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TypeVar

from dsv4.cache.allocator import OutOfCacheError
from dsv4.cache.disk import DiskBusyError, DiskTier, StoredPrefix
from dsv4.cache.layers import Place
from dsv4.cache.prefix import PrefixCache, ReusePolicy
from dsv4.cache.store import CacheStore, from_bytes, to_bytes
from dsv4.observe import log

T = TypeVar("T")


class CacheManager:
    """Opens, grows and closes the places of running requests, and keeps prefixes of them.

    A new request starts at the longest known prefix, in memory or on disk. Reuse changes only how much is computed, not
    the results. After an error of the disk the manager stops using it (`disk_off`), because the disk only saves time
    and must not fail an answer.
    """

    def __init__(self, store: CacheStore, policy: ReusePolicy, disk: DiskTier | None = None) -> None:
        self.store, self.prefixes, self.disk = store, PrefixCache(store, policy), disk
        self.disk_off = disk is None

    @property
    def active(self) -> bool:
        """Whether prefixes are kept at all."""
        return self.prefixes.policy.snapshots > 0 or self.prefixes.policy.windows == "none"

    def points(self, length: int, marked: Collection[int]) -> list[int]:
        """The positions at which chunks of a prompt end, so that the prefix can be kept: the marked ones, and those of
        the policy."""
        if not self.active:
            return []
        spacing = self.prefixes.policy.spacing
        return sorted({p for p in marked if 0 < p < length} | set(range(spacing, length, spacing)))

    def open(self, tokens: Sequence[int], owner: str) -> tuple[Place, int]:
        """A place for these tokens, and the number of tokens that it holds already. The last token is never one of
        them, because its logits are still to be computed. Raises OutOfCacheError when no slot is free."""
        prefixes, counts = self.prefixes, self.prefixes.counts
        counts.lookups += 1
        if not prefixes.make_room(pages=0, slots=1):
            raise OutOfCacheError("no slot is free")
        prefixes.make_room(pages=1)
        limit = len(tokens) - 1
        prefix = prefixes.find(tokens, owner, limit)
        known = prefixes.usable(prefix) if prefix else 0
        if (disk := self._used_disk()) is not None and (found := self._restore(disk, tokens, owner, limit, known)):
            return found
        if prefix is None or not known:
            return Place(self.store.slots.take(1)[0], []), 0
        counts.hits += 1
        counts.hit_tokens += known
        return prefixes.open(prefix), known

    def grow(self, place: Place, length: int) -> Place:
        """The place with pages for `length` tokens; kept prefixes are dropped where pages are short. Raises
        OutOfCacheError."""
        count = self.store.spec.pages_for(length) - len(place.pages)
        if count <= 0:
            return place
        self.prefixes.make_room(pages=count)
        return replace(place, pages=array("q", [*place.pages, *self.store.pages.take(count)]))

    def keep(self, tokens: Sequence[int], owner: str, place: Place) -> None:
        """Keep a prefix that a place holds; the rings of its slot are at the end of these tokens, or so few tokens
        further as may be taken back (`CacheSpec.taken_back`).
        With the policy `none` the windows are not kept, because the place may have begun at a prefix without a snapshot
        (`Place.window_from`); up to the end of that prefix such a place has nothing new."""
        if not self.active or len(tokens) < place.entries_from:
            return
        windows = self.prefixes.policy.windows != "none"
        added = self.prefixes.add(tokens, owner, place.pages, place.slot if windows else None)
        if added and (disk := self._used_disk()) is not None:
            self._guarded(lambda: self._write(disk, tokens, owner, place, windows))

    def close(self, place: Place) -> None:
        """Give back the slot and the pages of a request."""
        self.store.slots.give_back([place.slot])
        self.store.pages.give_back(place.pages)

    def forget(self) -> None:
        """Drop all kept prefixes, because the weights changed. The prefixes on disk belong to the old weights too, so
        the disk is not used any more."""
        self.prefixes.clear()
        self.disk_off = True

    def shut_down(self) -> None:
        """Write the queue of the disk tier and close it."""
        if self.disk is not None:
            self.disk.close()

    def shared_pages(self, tokens: Sequence[int], owner: str) -> int:
        """The number of pages of the longest cached prefix that running requests hold too. A request that reuses the
        prefix needs no free pages for them."""
        prefix = self.prefixes.find(tokens, owner, len(tokens) - 1)
        return self.prefixes.shared(prefix) if prefix and self.prefixes.usable(prefix) else 0

    def _used_disk(self) -> DiskTier | None:
        return None if self.disk_off else self.disk

    def _guarded(self, work: Callable[[], T]) -> T | None:
        """The result of `work`; None when the disk is busy or fails. After a failure, which is logged once, the disk is
        not used any more."""
        try:
            return work()
        except DiskBusyError:
            return None
        except Exception as error:  # a process border: other programs may change folder and index
            folder = str(self.disk.folder) if self.disk else ""
            log("prefix_disk_off", folder=folder, error=f"{type(error).__name__}: {error}", until="restart")
            self.disk_off = True
            return None

    def _write(self, disk: DiskTier, tokens: Sequence[int], owner: str, place: Place, windows: bool) -> None:
        store = self.store
        chain = disk.chain(tokens, owner)
        missing = disk.missing(chain.pages)
        for page, key in zip(place.pages, chain.pages, strict=False):
            if key in missing:
                disk.put_page(key, to_bytes(store.page_views(page)))
        rest = len(tokens) % store.spec.page_tokens
        views = store.page_views(place.pages[len(chain.pages)], rest) if rest else []
        disk.put_end(chain, to_bytes([*views, *(store.slot_views(place.slot) if windows else [])]))

    @staticmethod
    def _read(disk: DiskTier, tokens: Sequence[int], owner: str, more_than: int) -> tuple[int, StoredPrefix] | None:
        """The length and the bytes of the longest prefix on disk, if it has more than `more_than` tokens."""
        found = disk.find(tokens, owner)
        if found is None or found.length <= more_than:
            return None
        data = disk.read(found)
        return None if data is None else (found.length, data)

    def _restore(
        self, disk: DiskTier, tokens: Sequence[int], owner: str, limit: int, known: int
    ) -> tuple[Place, int] | None:
        """A place filled from disk, and the number of its tokens, if the disk has a longer prefix than memory."""
        prefixes, store = self.prefixes, self.store
        windows = prefixes.policy.windows != "none"
        warm_up = 0 if windows else prefixes.warm_up
        found = self._guarded(lambda: self._read(disk, tokens[:limit], owner, known + warm_up))
        if found is None:
            return None
        length, data = found
        needed = store.spec.pages_for(length)
        if not prefixes.make_room(pages=needed, slots=1):
            return None
        pages, slot = store.pages.take(needed), store.slots.take(1)[0]
        try:
            for page, content in zip(pages, data.pages, strict=False):
                from_bytes(content, store.page_views(page))
            rest = length % store.spec.page_tokens
            views = store.page_views(pages[-1], rest) if rest else []
            from_bytes(data.end, [*views, *(store.slot_views(slot) if windows else [])])
        except ValueError:  # bytes of another shape cannot be used
            self.close(Place(slot, pages))
            return None
        start = length - warm_up
        prefixes.counts.hits += 1
        prefixes.counts.hit_tokens += start
        prefixes.add(tokens[:length], owner, pages, slot if windows else None)
        if windows:
            return Place(slot, pages), start
        return Place(slot, pages, window_from=start, entries_from=length), start
