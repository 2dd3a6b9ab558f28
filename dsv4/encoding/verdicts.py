"""Which grammars were refused, and why, so that a client that repeats a schema which cannot be enforced costs nothing
more; and which are being made, so that all who want one at the same moment wait for one."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any, Generic, TypeVar

from dsv4.encoding.schema import GrammarError

# verdicts that are kept, and the characters of a reason in them
MOST_VERDICTS, MOST_REASON = 4_096, 1_000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Verdict:
    """refusal: the class and the text of the error, because an exception holds all that its frames held; None =
    accepted."""

    refusal: tuple[type[GrammarError], str] | None


@dataclass(slots=True)
class _Making(Generic[T]):
    """The making of what a key stands for. made: (what was made,); empty until then, and after a failure."""

    over: Event = field(default_factory=Event)
    made: tuple[T] | tuple[()] = ()


class Verdicts:
    """The last verdicts, by a digest of the key that identifies a grammar completely. Thread-safe.

    Several threads with one key have one `make` called, and the others wait for what it returns. It may ask for other
    keys, but not in a circle.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, _Verdict] = OrderedDict()
        self._under_way: dict[bytes, _Making[Any]] = {}
        self._lock = Lock()

    def made(self, key: str, make: Callable[[], T]) -> T:
        """What `make` returns. Raises its GrammarError; a key that was refused before is refused without a call.

        Another failure is no verdict: it is raised where it happened, and whoever waited calls its own `make`.
        """
        digest = _digest(key)
        while True:
            making, mine = self._joined(digest)
            if mine:
                return self._judged(digest, make, making)
            making.over.wait()
            if making.made:
                return making.made[0]

    def accepts(self, key: str, make: Callable[[], object]) -> bool:
        """Whether `make` raises no GrammarError. It is called once for a key, as long as the verdict is kept."""
        digest = _digest(key)
        verdict = self._known(digest)
        if verdict is None:
            try:
                self.made(key, make)
            except GrammarError:
                return False
            verdict = _Verdict(None)
            self._keep(digest, verdict)
        return verdict.refusal is None

    def _known(self, digest: bytes) -> _Verdict | None:
        with self._lock:
            return self._last(digest)

    def _last(self, digest: bytes) -> _Verdict | None:
        if digest in self._kept:
            self._kept.move_to_end(digest)
        return self._kept.get(digest)

    def _joined(self, digest: bytes) -> tuple[_Making[Any], bool]:
        """What is under way, and whether it begins here. Raises the error of a key that was refused."""
        with self._lock:
            verdict = self._last(digest)
            if verdict is not None and verdict.refusal is not None:
                kind, reason = verdict.refusal
                raise kind(reason)
            making = self._under_way.get(digest)
            if making is not None:
                return making, False
            begun = self._under_way[digest] = _Making[Any]()
            return begun, True

    def _judged(self, digest: bytes, make: Callable[[], T], making: _Making[T]) -> T:
        try:
            made = make()
            making.made = (made,)
            return made
        except GrammarError as error:
            self._keep(digest, _Verdict((type(error), str(error)[:MOST_REASON])))
            raise
        finally:
            with self._lock:
                del self._under_way[digest]
            making.over.set()

    def _keep(self, digest: bytes, verdict: _Verdict) -> None:
        with self._lock:
            self._kept[digest] = verdict
            while len(self._kept) > MOST_VERDICTS:
                self._kept.popitem(last=False)


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16).digest()
