"""Which server gets a request: the least loaded, or the one that has its beginning in its prefix cache. Pure."""

import array
import hashlib
from collections import OrderedDict
from collections.abc import Sequence

# positions that are remembered where a request names none
STEP = 256
MOST_POINTS = 512
# a server with the prefix is left for the least loaded one when it has more than BUSIER times its requests plus SPARE
BUSIER, SPARE = 1.5, 4
MOST_REMEMBERED = 1 << 17


def prefix_keys(prompt: Sequence[int], points: Sequence[int], owner: str) -> list[bytes]:
    """A name for each beginning of the prompt that another prompt may share, longest last. points: token counts, as in
    RequestOptions.cache_points."""
    tokens = array.array("I", prompt)
    places = sorted({place for place in points if 0 < place <= len(prompt)})
    if not places:
        places = list(range(STEP, len(prompt), STEP))
    digest, done, keys = hashlib.blake2b(owner.encode() + b"\0", digest_size=16), 0, []
    for place in [*places[-MOST_POINTS:], len(prompt)]:
        digest.update(tokens[done:place].tobytes())
        done = place
        keys.append(digest.digest())
    return keys


class PrefixRouter:
    """Remembers which server computed which beginnings; the oldest are forgotten."""

    def __init__(self, most: int = MOST_REMEMBERED) -> None:
        self._places: OrderedDict[bytes, int] = OrderedDict()
        self._most, self._turn = most, 0

    def choose(self, keys: Sequence[bytes], loads: Sequence[int | None]) -> int | None:
        """The number of the server for a prompt with these keys. loads: requests of each server, None = it is not to be
        used. None if there is none. Equally loaded servers take turns."""
        usable = [(load, number) for number, load in enumerate(loads) if load is not None]
        if not usable:
            return None
        least = min(load for load, _ in usable)
        for key in reversed(keys):
            number = self._places.get(key)
            load = loads[number] if number is not None else None
            if number is not None and load is not None:
                if load <= BUSIER * least + SPARE:
                    return number
                break
        best = [number for load, number in usable if load == least]
        self._turn += 1
        return best[self._turn % len(best)]

    def remember(self, keys: Sequence[bytes], number: int) -> None:
        """The server `number` has computed these beginnings."""
        for key in keys:
            self._places[key] = number
            self._places.move_to_end(key)
        while len(self._places) > self._most:
            self._places.popitem(last=False)
