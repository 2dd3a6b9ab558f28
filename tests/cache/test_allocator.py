"""The free list: all or nothing, lowest first, no double free."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from dsv4.cache import Allocator, OutOfCacheError


def test_the_lowest_free_numbers_are_taken_first() -> None:
    pages = Allocator(6, "pages")
    assert pages.take(4) == [0, 1, 2, 3]
    pages.give_back([0])
    pages.give_back([2])
    assert pages.take(3) == [0, 2, 4]


def test_what_does_not_fit_takes_nothing_and_says_what_is_short() -> None:
    pages = Allocator(3, "pages")
    pages.take(2)
    with pytest.raises(OutOfCacheError, match="2 pages needed, 1 of 3 free"):
        pages.take(2)
    assert pages.free == 1
    assert pages.take(1) == [2]


@pytest.mark.parametrize("number", [1, 2, 7, -1])
def test_freeing_what_is_not_taken_is_an_error(number: int) -> None:
    slots = Allocator(3, "slots")
    slots.take(2)
    slots.give_back([1])
    with pytest.raises(ValueError, match=f"slot {number} is not taken"):
        slots.give_back([number])
    assert slots.free == 2


def test_nothing_can_be_taken() -> None:
    pages = Allocator(0, "pages")
    assert pages.take(0) == []
    with pytest.raises(OutOfCacheError, match="1 pages needed, 0 of 0 free"):
        pages.take(1)


operations = st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 100)), max_size=40)


@given(st.integers(0, 12), operations)
def test_behaves_like_two_sets(count: int, steps: list[tuple[bool, int, int]]) -> None:
    numbers, free, taken = Allocator(count, "pages"), set(range(count)), []
    for take, amount, at in steps:
        if take and amount > len(free):
            with pytest.raises(OutOfCacheError):
                numbers.take(amount)
        elif take:
            got = numbers.take(amount)
            assert got == sorted(free)[:amount]
            free -= set(got)
            taken += got
        elif taken:
            back = [taken.pop(at % len(taken)) for _ in range(min(amount, len(taken)))]
            numbers.give_back(back)
            free |= set(back)
        assert numbers.free == len(free)


def test_a_shared_number_is_free_after_its_last_user() -> None:
    pages = Allocator(3, "pages")
    held = pages.take(2)
    pages.share(held)
    pages.give_back(held)
    assert (pages.free, pages.users(0)) == (1, 1)
    pages.give_back([0])
    assert pages.take(1) == [0]


def test_a_call_that_fails_changes_nothing() -> None:
    pages = Allocator(3, "pages")
    pages.take(2)
    for change in (lambda: pages.give_back([0, 2]), lambda: pages.give_back([0, 0]), lambda: pages.share([1, 2])):
        with pytest.raises(ValueError):
            change()
    assert (pages.free, pages.users(0), pages.users(1)) == (1, 1, 1)
