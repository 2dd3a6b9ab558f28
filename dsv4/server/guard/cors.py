"""Which pages of other sites may read the server's answers: CORS, by a list of origins. Without a list none may."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from starlette.responses import Response

EVERY = "*"
METHODS = "GET, POST, PUT, DELETE, HEAD, OPTIONS"
# what SDKs in a browser send, for a preflight that names no header
USUAL_HEADERS = "authorization, content-type, x-api-key"
# headers of answers that scripts may read besides the few that they always may
EXPOSED = "x-request-id, request-id, retry-after, warning, deprecation, etag"
PREFLIGHT_SECONDS = 600
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@A-Z]+")
HEADER_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~ ,-]{1,2000}")


@dataclass(frozen=True, slots=True)
class Origins:
    """The origins whose pages may use the server, as `https://chat.example.org`.

    `*` allows every page on the web, so it is never a default. The answers never allow credentials: the server has no
    cookies, and a page must know a key to send one.

    >>> Origins.parse(["https://chat.example.org"]).allows("https://example.org")
    False
    """

    allowed: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Self:
        """Raises ValueError for a text that is no origin: a browser would never send it."""
        allowed = frozenset(texts)
        for text in sorted(allowed):
            if text != EVERY and not ORIGIN.fullmatch(text):
                raise ValueError(
                    "--cors must be an origin such as https://chat.example.org (lower case, no path), or *, "
                    f"got {text!r}"
                )
        return cls(allowed)

    def allows(self, origin: str | None) -> bool:
        """Whether pages of `origin` may use the server."""
        return origin is not None and (origin in self.allowed or EVERY in self.allowed)

    def headers(self, origin: str | None) -> list[tuple[bytes, bytes]]:
        """The headers of every answer to a request from `origin`."""
        if EVERY in self.allowed:
            return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", EXPOSED.encode())]
        if not self.allowed:
            return []
        # a cache must not give one site's answer to another
        found = [(b"vary", b"Origin")]
        if origin is not None and self.allows(origin):
            found.append((b"access-control-allow-origin", origin.encode("latin-1")))
            found.append((b"access-control-expose-headers", EXPOSED.encode()))
        return found

    def preflight(self, headers: Mapping[bytes, str]) -> Response | None:
        """The answer to a browser that asks before a request of another site; None if it is no such question, or its
        origin is not allowed."""
        if b"access-control-request-method" not in headers or not self.allows(headers.get(b"origin")):
            return None
        wanted = headers.get(b"access-control-request-headers", "")
        answer = {
            "access-control-allow-methods": METHODS,
            "access-control-allow-headers": wanted if HEADER_NAMES.fullmatch(wanted) else USUAL_HEADERS,
            "access-control-max-age": str(PREFLIGHT_SECONDS),
        }
        if b"access-control-request-private-network" in headers:
            # Chrome asks this before a page of the web may reach an address of the local network
            answer["access-control-allow-private-network"] = "true"
        return Response(status_code=204, headers=answer)
