"""Prefix reuse in memory (report 5.2.2): pages are shared, a hit ends where a snapshot of the slot was taken.

A record says: these tokens are in these pages, and this slot holds the rings as they were after the last of them.
Snapshots are copies that nothing writes to; a running request only ever reads its own slot.
"""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from dsv4.cache.layers import Place
from dsv4.cache.pages import OutOfCacheError
from dsv4.cache.store import CacheStore
from dsv4.cache.tree import RadixTree, token_key

Windows = Literal["full", "periodic", "none"]


@dataclass(frozen=True, slots=True)
class ReusePolicy:
    """What is kept of the windows (report 5.2.2).

    full: a snapshot every 128 tokens, so that nothing is computed again. periodic: at marked places, at the end of
    prompt and output, and every `interval` tokens. none: pages only; a hit computes the last (layers x window) tokens
    again. snapshots: how many at most; the least recently used goes first. 0 turns reuse off (with `none`: pages kept).

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
        """Tokens between the points that are kept whatever the caller marks."""
        return {"full": 128, "periodic": self.interval, "none": 256}[self.windows]


@dataclass(eq=False, slots=True)
class Record:
    """`length` tokens of `owner`: their pages, and the snapshot (None = windows were not kept)."""

    key: bytes
    owner: str
    length: int
    pages: list[int]
    slot: int | None


@dataclass(slots=True)
class ReuseCounts:
    """What the prefix cache has done since it was made."""

    lookups: int = 0
    hits: int = 0
    hit_tokens: int = 0
    recorded: int = 0
    evicted: int = 0


@dataclass(slots=True)
class PrefixCache:
    """Records of finished prefixes, by owner; no owner sees another's."""

    store: CacheStore
    policy: ReusePolicy
    counts: ReuseCounts = field(default_factory=ReuseCounts)
    _trees: dict[str, RadixTree[Record]] = field(default_factory=dict)
    _records: "OrderedDict[Record, None]" = field(default_factory=OrderedDict)  # least recently used first
    _held: "Counter[int]" = field(default_factory=Counter)  # page -> records that hold it
    _snapshots: int = 0

    def __len__(self) -> int:
        return len(self._records)

    @property
    def warm_up(self) -> int:
        """Tokens to compute again before a prefix without windows can be continued: every layer's window depends on
        the window of the layer below."""
        return len(self.store.layers) * self.store.config.sliding_window

    def find(self, tokens: Sequence[int], owner: str, limit: int) -> Record | None:
        """The longest record of at most `limit` tokens that begins these tokens."""
        tree = self._trees.get(owner)
        best = None
        for record in tree.prefixes(token_key(tokens[:limit])) if tree else ():
            best = record
        if best is not None:
            self._records.move_to_end(best)
        return best

    def has(self, tokens: Sequence[int], owner: str) -> bool:
        """Whether exactly these tokens are recorded."""
        tree = self._trees.get(owner)
        return tree is not None and tree.get(token_key(tokens)) is not None

    def usable(self, record: Record) -> int:
        """Tokens a hit on this record saves."""
        return record.length if record.slot is not None else max(0, record.length - self.warm_up)

    def open(self, record: Record) -> Place:
        """A place that continues a record: its own slot and page list, full pages shared, the last one copied when it
        is not full. Raises OutOfCacheError; then nothing is taken."""
        per_page = self.store.spec.page_tokens
        whole, rest = divmod(record.length, per_page)
        slot = self.store.slots.take(1)
        try:
            last = self.store.pages.take(1 if rest else 0)
        except OutOfCacheError:
            self.store.slots.give_back(slot)
            raise
        shared = record.pages[:whole]
        self.store.pages.share(shared)
        if rest:
            self.store.copy_page(record.pages[whole], last[0], rest)
        if record.slot is not None:
            self.store.copy_slot(record.slot, slot[0])
            return Place(slot[0], [*shared, *last])
        start = self.usable(record)
        return Place(slot[0], [*shared, *last], window_from=start, entries_from=record.length)

    def record(self, tokens: Sequence[int], owner: str, pages: Sequence[int], slot: int | None) -> bool:
        """Keep these tokens. pages: those that hold them (at least). slot: whose rings are at this length or one token
        further; copied. False when it is known already or no snapshot can be had."""
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
        record = Record(key, owner, len(tokens), own, snapshot)
        self._trees.setdefault(owner, RadixTree()).set(key, record)
        self._records[record] = None
        self.counts.recorded += 1
        return True

    def shared(self, record: Record) -> int:
        """Full pages of a record that others than records hold: who opens it shares them."""
        whole = record.pages[: record.length // self.store.spec.page_tokens]
        return sum(1 for page in whole if self.store.pages.users(page) > self._held[page])

    def check_integrity(self) -> bool:
        """True when every page and slot in use is held by records alone, as often as they say, and no tree is empty."""
        owned = self._trees.keys() == {record.owner for record in self._records}
        pages = all(self.store.pages.users(p) == self._held.get(p, 0) for p in range(self.store.pages.count))
        slots = self.store.slots.count - self.store.slots.free
        return owned and pages and slots == self._snapshots == sum(r.slot is not None for r in self._records)

    def reclaimable(self) -> int:
        """Pages that only records hold."""
        return sum(1 for page, users in self._held.items() if self.store.pages.users(page) == users)

    def make_room(self, pages: int = 0, slots: int = 0) -> bool:
        """Drop records, the least recently used first, until so many pages and slots are free."""
        while self.store.pages.free < pages or self.store.slots.free < slots:
            if not self._drop_oldest(with_slot=self.store.pages.free >= pages):
                return False
        return True

    def clear(self) -> None:
        """Forget everything: the weights have changed."""
        for record in list(self._records):
            self._drop(record)

    def _drop_oldest(self, *, with_slot: bool) -> bool:
        record = next((r for r in self._records if r.slot is not None or not with_slot), None)
        if record is not None:
            self._drop(record)
            self.counts.evicted += 1
        return record is not None

    def _drop(self, record: Record) -> None:
        tree = self._trees[record.owner]
        tree.remove(record.key)
        if not tree:
            del self._trees[record.owner]
        del self._records[record]
        self.store.pages.give_back(record.pages)
        for page in record.pages:
            self._held[page] -= 1
            if not self._held[page]:
                del self._held[page]
        if record.slot is not None:
            self.store.slots.give_back([record.slot])
            self._snapshots -= 1
