"""Allocation of pages and slots by number, with reference counts. No torch, no clock."""

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush


class OutOfCacheError(RuntimeError):
    """There are not enough free pages or slots; nothing was taken."""


class Allocator:
    """Hands out the numbers 0..count-1. A number is free or has one or more users; the lowest free numbers go first.

    what: the plural that error messages use ("pages").
    """

    def __init__(self, count: int, what: str) -> None:
        self._free = list(range(count))  # a heap
        self._users = [0] * count
        self.count, self._what = count, what

    @property
    def free(self) -> int:
        return len(self._free)

    def users(self, number: int) -> int:
        """The number of users of this number; 0 = it is free."""
        return self._users[number]

    def take(self, count: int) -> list[int]:
        """Take `count` free numbers, all or none. Raises OutOfCacheError with both counts when there are too few."""
        if count > len(self._free):
            raise OutOfCacheError(f"{count} {self._what} needed, {len(self._free)} of {self.count} free")
        numbers = [heappop(self._free) for _ in range(count)]
        for number in numbers:
            self._users[number] = 1
        return numbers

    def share(self, numbers: Iterable[int]) -> None:
        """Add one user to numbers that are in use. Raises ValueError for a free number; then nothing changes."""
        numbers = list(numbers)
        self._check(numbers)
        for number in numbers:
            self._users[number] += 1

    def give_back(self, numbers: Sequence[int]) -> None:
        """Remove one user of each number; a number without users is free. Raises ValueError for a free number (a double
        free); then nothing changes."""
        self._check(numbers)
        given: dict[int, int] = {}
        for number in numbers:
            given[number] = given.get(number, 0) + 1
            if given[number] > self._users[number]:
                raise ValueError(f"{self._what[:-1]} {number} is given back more often than it is held")
        for number in numbers:
            self._users[number] -= 1
            if not self._users[number]:
                heappush(self._free, number)

    def _check(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if not 0 <= number < self.count or not self._users[number]:
                raise ValueError(f"{self._what[:-1]} {number} is not taken")
