"""Who may ask, and how much: pages of other sites must not use a server that only this machine should reach.

A page in the user's browser can send requests to 127.0.0.1, and with DNS rebinding read the answers under a name of
its own. Both show in the headers: a Host that is not this machine, an Origin that is another site.
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import Scope

from dsv4.server.errors import ApiError

MOST_BODY_BYTES = 32 << 20


def is_loopback(name: str | None) -> bool:
    """Whether a host name or address can only mean this machine."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name or "").is_loopback
    except ValueError:
        return False


def refusal(scope: Scope) -> ApiError | None:
    """Why a request is not answered, judged by its headers; None if it may go on. Programs send no Origin."""
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    for header, address in ((b"host", f"//{headers.get(b'host', '')}"), (b"origin", headers.get(b"origin"))):
        if address is None:
            continue
        try:
            name = urlsplit(address).hostname
        except ValueError:
            name = None
        if not is_loopback(name):
            field = header.decode()
            shown = headers.get(header, "")[:80]
            return ApiError(403, f"{field}: only this machine is served, got {shown!r}", param=field, code="forbidden")
    return None


async def read_body(request: Request) -> bytes:
    """The whole body. Raises ApiError 413 as soon as it is larger than allowed."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BODY_BYTES:
            raise ApiError(413, f"body: at most {MOST_BODY_BYTES:,} bytes are accepted", param="body", code="too_large")
        parts.append(part)
    return b"".join(parts)
