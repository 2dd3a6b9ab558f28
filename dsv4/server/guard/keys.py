"""API keys: read from a file or the environment, kept as digests, compared in constant time."""

import hashlib
import hmac
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Self

from dsv4.server.guard.limits import KeyLimits
from dsv4.server.wire.errors import ApiError
from dsv4.server.wire.names import LONGEST_NAME, short_name

SHORTEST = 8
ADMIN = "admin"
LIMIT_NAMES = frozenset(item.name for item in fields(KeyLimits))


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a server as (name, digest) pairs, and the limits of those that have some. Empty: no key is needed.
    admins: names of the keys of operators.

    >>> Keys.parse(["alice secret-of-alice"]).name_of("secret-of-alice")
    'alice'
    """

    entries: tuple[tuple[str, bytes], ...] = ()
    limits: Mapping[str, KeyLimits] = field(default_factory=dict)
    admins: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, lines: Iterable[str], source: str = "keys", unnamed: str = "key") -> Self:
        """Keys from lines `name key` or `key`, with optional limits such as `requests=60` behind, and `admin` for the
        key of an operator. Empty lines and lines that begin with # are ignored. A key without a name is named `unnamed`
        and the number of its line, as `key4`.

        Raises ValueError naming the line, never the key.
        """
        entries: list[tuple[str, bytes]] = []
        limits: dict[str, KeyLimits] = {}
        admins: set[str] = set()
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            # a key may hold an equals sign itself, so only what follows name and key is a limit
            words, options = words[:2], words[2:]
            if len(words) == 2 and (words[1] == ADMIN or words[1].partition("=")[0] in LIMIT_NAMES):
                words, options = words[:1], [words[1], *options]
            if len(words[-1]) < SHORTEST:
                raise ValueError(
                    f"{source}: line {number}: expected a name and a key of at least {SHORTEST} characters"
                )
            name = words[0] if len(words) == 2 else f"{unnamed}{number}"
            if name != short_name(name):
                raise ValueError(
                    f"{source}: line {number}: a name has at most {LONGEST_NAME} characters, all printable"
                )
            if ADMIN in options:
                admins.add(name)
            try:
                own = KeyLimits.parse([option for option in options if option != ADMIN])
            except ValueError as error:
                raise ValueError(f"{source}: line {number}: {error}") from None
            if own != KeyLimits():
                limits[name] = own
            entries.append((name, _digest(words[-1])))
        return cls(tuple(entries), limits, frozenset(admins)).checked(source)

    def checked(self, source: str) -> Self:
        """These keys. Raises ValueError if two have the same name or the same key: they could not be distinguished."""
        names = Counter(name for name, _ in self.entries)
        digests = Counter(digest for _, digest in self.entries)
        for name, digest in self.entries:
            if names[name] > 1:
                raise ValueError(f"{source}: two keys are named {name!r}; their caches, limits and usage would be one")
            if digests[digest] > 1:
                raise ValueError(f"{source}: the key of {name!r} stands there twice, under two names")
        return self

    @classmethod
    def load(cls, file: Path) -> Self:
        """Keys of a file. Raises FileNotFoundError, or ValueError if it holds none."""
        try:
            text = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: not a text in UTF-8 ({error.reason} at byte {error.start})") from error
        keys = cls.parse(text.splitlines(), str(file))
        if not keys:
            raise ValueError(f"{file}: holds no key")
        return keys

    def __bool__(self) -> bool:
        return bool(self.entries)

    def sees_all(self, name: str) -> bool:
        """Whether the key of this name is an operator's: it is marked `admin`, or it is the only key. Without keys
        everyone is."""
        return name in self.admins or len(self.entries) < 2

    def name_of(self, key: str) -> str | None:
        """The name of a key, None for an unknown one. Takes the same time for every wrong key."""
        digest, found = _digest(key), None
        for name, known in self.entries:
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def check(self, authorization: str | None, x_api_key: str | None) -> str:
        """The name of the key in these headers (as latin-1 text), "" if the server has no keys. `Authorization` takes
        precedence: `x-api-key` is not read beside it. Raises ApiError 401."""
        if not self:
            return ""
        given = x_api_key or ""
        if authorization:
            scheme, _, rest = authorization.strip().partition(" ")
            given = rest.strip() if scheme.lower() == "bearer" else authorization.strip()
        # clients send non-ASCII letters as UTF-8 or as latin-1
        name = self.name_of(given) or self.name_of(given.encode("latin-1", "replace").decode("utf-8", "replace"))
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
