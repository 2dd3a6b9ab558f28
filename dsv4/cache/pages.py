"""Handing out numbered places: pages and slots. No torch, no clock."""

from heapq import heappop, heappush


class OutOfCacheError(RuntimeError):
    """There are not enough free pages or slots; nothing was taken."""


class FreeList:
    """Numbers 0..count-1, each free or taken. The lowest free numbers are taken first."""

    def __init__(self, count: int, what: str) -> None:
        self._free = list(range(count))  # a heap
        self._taken: set[int] = set()
        self.count, self._what = count, what

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Take `count` numbers, all or none. Raises OutOfCacheError naming what is short and by how much."""
        if count > len(self._free):
            raise OutOfCacheError(f"{count} {self._what} needed, {len(self._free)} of {self.count} free")
        numbers = [heappop(self._free) for _ in range(count)]
        self._taken.update(numbers)
        return numbers

    def give_back(self, numbers: list[int]) -> None:
        """Free taken numbers. Raises ValueError for one that is not taken (a double free)."""
        for number in numbers:
            if number not in self._taken:
                raise ValueError(f"{self._what[:-1]} {number} is not taken")
            self._taken.remove(number)
            heappush(self._free, number)
