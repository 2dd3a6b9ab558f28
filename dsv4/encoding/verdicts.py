"""Which grammars were refused, and why, so that a client that repeats a schema which cannot be enforced costs nothing
more."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import TypeVar

from dsv4.encoding.schema import GrammarError

# verdicts that are kept, and the characters of a reason in them
MOST_VERDICTS, MOST_REASON = 4_096, 1_000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Verdict:
    """refusal: the class and the text of the error, because an exception holds all that its frames held; None =
    accepted."""

    refusal: tuple[type[GrammarError], str] | None


class Verdicts:
    """The last verdicts, by a digest of the key that identifies a grammar completely. Thread-safe."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, _Verdict] = OrderedDict()
        self._lock = Lock()

    def made(self, key: str, make: Callable[[], T]) -> T:
        """What `make` returns. Raises its GrammarError; a key that was refused before is refused without a call."""
        digest = _digest(key)
        verdict = self._known(digest)
        if verdict is not None and verdict.refusal is not None:
            kind, reason = verdict.refusal
            raise kind(reason)
        return self._judged(digest, make)

    def accepts(self, key: str, make: Callable[[], object]) -> bool:
        """Whether `make` raises no GrammarError. It is called once for a key, as long as the verdict is kept."""
        digest = _digest(key)
        verdict = self._known(digest)
        if verdict is None:
            try:
                self._judged(digest, make)
            except GrammarError:
                return False
            verdict = _Verdict(None)
            self._keep(digest, verdict)
        return verdict.refusal is None

    def _known(self, digest: bytes) -> _Verdict | None:
        with self._lock:
            if digest in self._kept:
                self._kept.move_to_end(digest)
            return self._kept.get(digest)

    def _judged(self, digest: bytes, make: Callable[[], T]) -> T:
        try:
            return make()
        except GrammarError as error:
            self._keep(digest, _Verdict((type(error), str(error)[:MOST_REASON])))
            raise

    def _keep(self, digest: bytes, verdict: _Verdict) -> None:
        with self._lock:
            self._kept[digest] = verdict
            while len(self._kept) > MOST_VERDICTS:
                self._kept.popitem(last=False)


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16).digest()
