"""Which requests are let in: by their headers, their key, and the number of requests that run already."""

from starlette.types import Scope

from dsv4.server.guard.cors import Origins
from dsv4.server.guard.keys import Keys
from dsv4.server.guard.limits import UsageLimits
from dsv4.server.guard.origin import headers_of, refusal
from dsv4.server.wire.errors import ApiError, busy, stopping


class Admission:
    """Lets requests in and counts them. local_only, max_requests, origins: as in `Settings`.

    limits: what each key has used. inside: requests that were let in and are not over. draining: no request is let in.
    """

    def __init__(self, keys: Keys, *, local_only: bool, max_requests: int, origins: Origins) -> None:
        self._keys, self._local_only, self._max_requests = keys, local_only, max_requests
        self.origins = origins
        self.limits = UsageLimits(keys.limits)
        self.inside = 0
        self.draining = False

    def key_of(self, scope: Scope, *, open: bool) -> str:
        """The name of the key in the headers of a request; "" without keys, or for an `open` path. Raises ApiError for
        headers that are refused: 400, 401 or 403."""
        headers = headers_of(scope)
        if b"transfer-encoding" in headers and b"content-length" in headers:
            # two programs on the way may see two ends of such a body, and another request behind one of them
            raise ApiError(400, "content-length: not together with transfer-encoding", headers={"connection": "close"})
        if self._local_only and (refused := refusal(headers, self.origins)) is not None:
            raise refused
        return "" if open else self._keys.check(headers.get(b"authorization"), headers.get(b"x-api-key"))

    def enter(self, key: str) -> None:
        """Let a request in that costs time, before its body is read. Raises ApiError 429 or 503."""
        if self.draining:
            raise stopping()
        if self.inside >= self._max_requests:
            raise busy(f"{self.inside} requests are running already; try again later")
        self.limits.enter(key)
        self.inside += 1

    def leave(self, key: str) -> None:
        """A request that was let in is over."""
        self.inside -= 1
        self.limits.leave(key)
