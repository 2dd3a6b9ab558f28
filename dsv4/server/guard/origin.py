"""The origin of a request: pages of other sites must not use a server that only this machine should reach.

A page in the user's browser can send requests to 127.0.0.1, and with DNS rebinding it can read the answers. The headers
show both: a Host that is not this machine, or an Origin that is another site.
"""

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.types import Scope

from dsv4.server.guard.cors import Origins
from dsv4.server.wire.errors import ApiError


def is_loopback(name: str | None) -> bool:
    """Whether a host name or address always means this machine."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name or "").is_loopback
    except ValueError:
        return False


def headers_of(scope: Scope) -> dict[bytes, str]:
    """The headers of a request. Of a header that was sent twice the last value counts."""
    return {name: value.decode("latin-1") for name, value in scope["headers"]}


def refusal(headers: Mapping[bytes, str], others: Origins) -> ApiError | None:
    """The error for a request with these headers, None if it is allowed. Programs send no Origin. others: sites whose
    pages may use the server too."""
    for header, address in ((b"host", f"//{headers.get(b'host', '')}"), (b"origin", headers.get(b"origin"))):
        if address is None or (header == b"origin" and others.allows(address)):
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
