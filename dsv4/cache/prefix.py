"""The prefix cache in memory (report 5.2.2). Requests share its pages; a hit ends where a snapshot of a slot was taken.

A cached prefix consists of the pages that hold its tokens and of a slot with the rings as they were after its last
token. This slot is a snapshot, a copy that nothing writes to; a running request reads only its own slot.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dsv4.cache.allocator import OutOfCacheError
from dsv4.cache.layers import Place
from dsv4.cache.store import CacheStore
from dsv4.cache.tree import RadixTree, token_key

Windows = Literal["full", "periodic", "none"]


@dataclass(frozen=True, slots=True)
class ReusePolicy:
    """The points at which prefixes are kept, and what is kept of their windows (report 5.2.2).

    windows: `full` takes a snapshot every 128 tokens, so that nothing is computed again; `periodic` takes one at marked
    positions, at the end of prompt and output, and every `interval` tokens; `none` keeps pages only, and a hit computes
    the last (layers x window) tokens again. snapshots: the largest number of them; the least recently used is dropped
    first. 0 turns reuse off, except with `none`, which needs no snapshots.

    Raises ValueError naming the field and its range.
    """

    windows: Windows = "periodic"
    interval: int = 4096
    snapshots: int = 32

    def __post_init__(self) -> None:
        if self.windows not in ("full", "periodic", "none"):
            raise ValueError(f"windows must be full, periodic or none, got {self.windows!r}")
        if self.interval < 256 or self.interval % 256:
            raise ValueError(f"interval must be a positive multiple of 256, got {self.interval}")
        if self.snapshots < 0:
            raise ValueError(f"snapshots must be at least 0, got {self.snapshots}")

    @property
    def spacing(self) -> int:
        """Tokens between the points that are kept besides those that the caller marks."""
        return {"full": 128, "periodic": self.interval, "none": 256}[self.windows]


@dataclass(eq=False, slots=True)
class CachedPrefix:
    """The first `length` tokens of a sequence of `owner`: their pages, and the slot of the snapshot (None = the windows
    were not kept)."""

    key: bytes
    owner: str
    length: int
    pages: list[int]
    slot: int | None


@dataclass(slots=True)
class ReuseCounts:
    """Events of the prefix cache since it was made."""

    lookups: int = 0
    hits: int = 0
    hit_tokens: int = 0
    recorded: int = 0
    evicted: int = 0


@dataclass(slots=True)
class PrefixCache:
    """Cached prefixes by owner; an owner finds only prefixes of its own."""

    store: CacheStore
    policy: ReusePolicy
    counts: ReuseCounts = field(default_factory=ReuseCounts)
    _trees: dict[str, RadixTree[CachedPrefix]] = field(default_factory=dict)
    _prefixes: "OrderedDict[CachedPrefix, None]" = field(default_factory=OrderedDict)  # least recently used first
    _held: "Counter[int]" = field(default_factory=Counter)  # page -> cached prefixes that hold it
    _snapshots: int = 0

    def __len__(self) -> int:
        return len(self._prefixes)

    def tree(self) -> Iterator[tuple[CachedPrefix, CachedPrefix | None]]:
        """Each cached prefix with the longest one that it continues; it comes after that one."""
        for tree in self._trees.values():
            yield from tree.parents()

    @property
    def warm_up(self) -> int:
        """Tokens to compute again before a prefix without windows can be continued, because the window of a layer
        depends on the window of the layer below."""
        return len(self.store.layers) * self.store.config.sliding_window

    def find(self, tokens: Sequence[int], owner: str, limit: int) -> CachedPrefix | None:
        """The longest cached prefix of these tokens with at most `limit` tokens."""
        tree = self._trees.get(owner)
        best = None
        for prefix in tree.prefixes(token_key(tokens[:limit])) if tree else ():
            best = prefix
        if best is not None:
            self._prefixes.move_to_end(best)
        return best

    def has(self, tokens: Sequence[int], owner: str) -> bool:
        """Whether exactly these tokens are cached."""
        tree = self._trees.get(owner)
        return tree is not None and tree.get(token_key(tokens)) is not None

    def usable(self, prefix: CachedPrefix) -> int:
        """Tokens that a hit on this prefix saves."""
        return prefix.length if prefix.slot is not None else max(0, prefix.length - self.warm_up)

    def open(self, prefix: CachedPrefix) -> Place:
        """A place that continues a cached prefix. It has its own slot and list of pages; full pages are shared, a last
        page that is not full is copied. Raises OutOfCacheError; then nothing is taken."""
        per_page = self.store.spec.page_tokens
        whole, rest = divmod(prefix.length, per_page)
        slot = self.store.slots.take(1)
        try:
            last = self.store.pages.take(1 if rest else 0)
        except OutOfCacheError:
            self.store.slots.give_back(slot)
            raise
        shared = prefix.pages[:whole]
        self.store.pages.share(shared)
        if rest:
            self.store.copy_page(prefix.pages[whole], last[0], rest)
        if prefix.slot is not None:
            self.store.copy_slot(prefix.slot, slot[0])
            return Place(slot[0], [*shared, *last])
        start = self.usable(prefix)
        return Place(slot[0], [*shared, *last], window_from=start, entries_from=prefix.length)

    def add(self, tokens: Sequence[int], owner: str, pages: Sequence[int], slot: int | None) -> bool:
        """Keep these tokens. pages: hold these tokens and perhaps more. slot: is copied; its rings are at this length
        or at most `CacheSpec.taken_back` further. False when these tokens are cached or no snapshot can be taken."""
        key = token_key(tokens)
        if not tokens or self.has(tokens, owner):
            return False
        snapshot = None
        if slot is not None:
            while self._snapshots >= self.policy.snapshots or not self.store.slots.free:
                if not self._drop_oldest(with_slot=True):
                    return False
            snapshot = self.store.slots.take(1)[0]
            self.store.copy_slot(slot, snapshot)
            self._snapshots += 1
        own = list(pages[: self.store.spec.pages_for(len(tokens))])
        self.store.pages.share(own)
        self._held.update(own)
        prefix = CachedPrefix(key, owner, len(tokens), own, snapshot)
        self._trees.setdefault(owner, RadixTree()).set(key, prefix)
        self._prefixes[prefix] = None
        self.counts.recorded += 1
        return True

    def shared(self, prefix: CachedPrefix) -> int:
        """The number of full pages of a prefix that running requests hold too; a request that opens the prefix shares
        them."""
        whole = prefix.pages[: prefix.length // self.store.spec.page_tokens]
        return sum(1 for page in whole if self.store.pages.users(page) > self._held[page])

    def check_integrity(self) -> bool:
        """True when only cached prefixes hold pages and slots, all counts of users agree, and no tree is empty."""
        owned = self._trees.keys() == {prefix.owner for prefix in self._prefixes}
        pages = all(self.store.pages.users(p) == self._held.get(p, 0) for p in range(self.store.pages.count))
        slots = self.store.slots.count - self.store.slots.free
        return owned and pages and slots == self._snapshots == sum(p.slot is not None for p in self._prefixes)

    def reclaimable(self) -> int:
        """The number of pages that only cached prefixes hold."""
        return sum(1 for page, users in self._held.items() if self.store.pages.users(page) == users)

    def make_room(self, pages: int = 0, slots: int = 0) -> bool:
        """Drop prefixes, the least recently used first, until so many pages and slots are free. False when even all of
        them are not enough."""
        while self.store.pages.free < pages or self.store.slots.free < slots:
            if not self._drop_oldest(with_slot=self.store.pages.free >= pages):
                return False
        return True

    def clear(self) -> None:
        """Drop all prefixes, because the weights have changed."""
        for prefix in list(self._prefixes):
            self._drop(prefix)

    def _drop_oldest(self, *, with_slot: bool) -> bool:
        prefix = next((p for p in self._prefixes if p.slot is not None or not with_slot), None)
        if prefix is not None:
            self._drop(prefix)
            self.counts.evicted += 1
        return prefix is not None

    def _drop(self, prefix: CachedPrefix) -> None:
        tree = self._trees[prefix.owner]
        tree.remove(prefix.key)
        if not tree:
            del self._trees[prefix.owner]
        del self._prefixes[prefix]
        self.store.pages.give_back(prefix.pages)
        for page in prefix.pages:
            self._held[page] -= 1
            if not self._held[page]:
                del self._held[page]
        if prefix.slot is not None:
            self.store.slots.give_back([prefix.slot])
            self._snapshots -= 1
