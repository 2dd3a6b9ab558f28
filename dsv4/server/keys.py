"""API keys: read from a file or the environment, kept as digests, compared in constant time."""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dsv4.server.errors import ApiError

SHORTEST = 8


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a server as (name, digest) pairs. Empty: no key is asked for.

    >>> Keys.parse(["alice secret-of-alice"]).name_of("secret-of-alice")
    'alice'
    """

    entries: tuple[tuple[str, bytes], ...] = ()

    @classmethod
    def parse(cls, lines: Iterable[str], source: str = "keys") -> Self:
        """Keys from lines `name key` or `key`; empty lines and those that begin with # are left out.

        Raises ValueError naming the line, never the key.
        """
        entries: list[tuple[str, bytes]] = []
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) > 2 or len(words[-1]) < SHORTEST:
                raise ValueError(
                    f"{source}: line {number}: expected a name and a key of at least {SHORTEST} characters"
                )
            entries.append((words[0] if len(words) == 2 else f"key{number}", _digest(words[-1])))
        return cls(tuple(entries))

    @classmethod
    def load(cls, file: Path) -> Self:
        """Keys of a file. Raises FileNotFoundError, or ValueError if it holds none."""
        keys = cls.parse(file.read_text(encoding="utf-8").splitlines(), str(file))
        if not keys:
            raise ValueError(f"{file}: holds no key")
        return keys

    def __bool__(self) -> bool:
        return bool(self.entries)

    def name_of(self, key: str) -> str | None:
        """Whose key this is. Takes the same time for every wrong key."""
        digest, found = _digest(key), None
        for name, known in self.entries:
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def check(self, authorization: str | None, x_api_key: str | None) -> str:
        """The name of the key in these headers, "" if none is asked for. `Authorization` wins. Raises ApiError 401."""
        if not self:
            return ""
        given = x_api_key or ""
        if authorization:
            given = authorization.removeprefix("Bearer ").removeprefix("bearer ").strip()
        name = self.name_of(given)
        if name is None:
            shown = f"****{given[-4:]}" if len(given) > SHORTEST else "****"
            raise ApiError(
                401,
                f"Authentication Fails, Your api key: {shown} is invalid",
                type="authentication_error",
                headers={"www-authenticate": "Bearer"},
            )
        return name


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", errors="surrogatepass")).digest()
