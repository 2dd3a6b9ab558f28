"""Kept prefixes: who finds what, what is shared, what goes first when room is needed."""

import pytest

from dsv4.cache import CacheStore, OutOfCacheError
from dsv4.cache.prefix import PrefixCache, ReusePolicy
from dsv4.testing.tiny import tiny_config


def made(pages: int = 12, slots: int = 6, **policy: object) -> PrefixCache:
    store = CacheStore(tiny_config(), "fp32", tokens=256 * pages, slots=slots)
    return PrefixCache(store, ReusePolicy(**{"snapshots": 4, **policy}))  # type: ignore[arg-type]


def keep(cache: PrefixCache, tokens: list[int], owner: str = "a", slot: bool = True) -> bool:
    """As a request that ends right after."""
    pages, slots = cache.store.pages.take(cache.store.spec.pages_for(len(tokens))), cache.store.slots.take(1)
    kept = cache.add(tokens, owner, pages, slots[0] if slot else None)
    cache.store.pages.give_back(pages)
    cache.store.slots.give_back(slots)
    assert cache.check_integrity()
    return kept


def length_of(cache: PrefixCache, tokens: list[int], owner: str = "a", limit: int = 10**6) -> int:
    prefix = cache.find(tokens, owner, limit)
    return prefix.length if prefix else 0


def test_the_longest_prefix_within_the_limit_is_found() -> None:
    cache, tokens = made(), list(range(90))
    assert keep(cache, tokens[:10])
    assert keep(cache, tokens[:40])
    assert not keep(cache, tokens[:40])
    assert length_of(cache, tokens) == 40
    assert length_of(cache, tokens, limit=39) == 10
    assert length_of(cache, [*tokens[:20], 5]) == 10
    assert length_of(cache, tokens[:9]) == 0


def test_owners_do_not_see_each_other() -> None:
    cache, tokens = made(), list(range(90))
    keep(cache, tokens, owner="a")
    assert length_of(cache, tokens, owner="b") == 0
    assert keep(cache, tokens, owner="b")


def test_full_pages_are_shared_and_the_last_one_is_copied() -> None:
    cache, tokens = made(), [1] * 600
    keep(cache, tokens)
    (prefix,) = cache._prefixes
    place = cache.open(prefix)
    assert list(place.pages)[:2] == prefix.pages[:2]
    assert place.pages[2] not in prefix.pages
    assert cache.shared(prefix) == 2
    assert cache.reclaimable() == 1
    cache.store.pages.give_back(place.pages)
    cache.store.slots.give_back([place.slot])
    assert cache.reclaimable() == 3


def test_the_least_recently_used_goes_first() -> None:
    cache = made()
    for n in range(4):
        keep(cache, [n, n])
    length_of(cache, [0, 0, 9])
    keep(cache, [7, 7])
    assert [length_of(cache, [n, n]) for n in (0, 1, 2, 3, 7)] == [2, 0, 2, 2, 2]
    assert cache.counts.evicted == 1


def test_room_is_made_by_forgetting_and_only_as_much_as_needed() -> None:
    cache = made(pages=4)
    for n in range(4):
        keep(cache, [n] * 200)
    assert cache.store.pages.free == 0
    assert cache.make_room(pages=2)
    assert (cache.store.pages.free, len(cache)) == (2, 2)
    assert not cache.make_room(pages=5)
    assert len(cache) == 0


def test_opening_without_room_takes_nothing() -> None:
    cache = made(pages=3, slots=2)
    keep(cache, [1] * 300)
    (prefix,) = cache._prefixes
    pages = cache.store.pages.take(1)
    with pytest.raises(OutOfCacheError):
        cache.open(prefix)
    cache.store.pages.give_back(pages)
    assert cache.check_integrity()


def test_a_prefix_without_windows_saves_what_lies_before_the_warm_up() -> None:
    cache = made(windows="none")
    assert cache.warm_up == 5 * 128
    keep(cache, [1] * 1000, slot=False)
    (prefix,) = cache._prefixes
    place = cache.open(prefix)
    assert (cache.usable(prefix), place.window_from, place.entries_from) == (360, 360, 1000)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"windows": "some"}, "windows must be full, periodic or none, got 'some'"),
        ({"interval": 100}, "interval must be a positive multiple of 256, got 100"),
        ({"snapshots": -1}, "snapshots must be at least 0, got -1"),
    ],
)
def test_impossible_policies_are_refused(policy: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReusePolicy(**policy)


def test_owners_of_nothing_are_forgotten() -> None:
    cache = made(slots=3)
    for n in range(40):
        keep(cache, [n, n], owner=f"owner {n}")
    assert len(cache._trees) == len(cache) == 2
    cache.clear()
    assert not cache._trees
    assert cache.check_integrity()
