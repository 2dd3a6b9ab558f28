"""Who may ask, and how much: pages of other sites must not use a server that only this machine should reach.

A page in the user's browser can send requests to 127.0.0.1, and with DNS rebinding read the answers under a name of
its own. Both show in the headers: a Host that is not this machine, an Origin that is another site.
"""

import asyncio
import ipaddress
import json
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


def headers_of(scope: Scope) -> dict[bytes, str]:
    """The headers of a request; of one sent twice the last."""
    return {name: value.decode("latin-1") for name, value in scope["headers"]}


def refusal(scope: Scope) -> ApiError | None:
    """Why a request is not answered, judged by its headers; None if it may go on. Programs send no Origin."""
    headers = headers_of(scope)
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


def owner_name(key: str, *users: object) -> str:
    """Whose cached prefixes a request may use: those of its key and of the first user named.

    Clients that name a session with the user would share nothing between sessions, so that part is left out.
    """
    user = next((str(user) for user in users if user not in (None, "")), "")
    try:
        fields = json.loads(user) if user.startswith("{") else None
    except ValueError:
        fields = None
    if isinstance(fields, dict):
        user = json.dumps({name: value for name, value in fields.items() if "session" not in name}, sort_keys=True)
    return f"{key}/{user.split('_session_')[0]}" if key or user else ""


async def read_body(request: Request, pause: float = 60.0) -> bytes:
    """The whole body. Raises ApiError 413 as soon as it is larger than allowed, 408 if the client sends nothing for
    `pause` seconds."""
    parts, size = [], 0
    stream = aiter(request.stream())
    while True:
        try:
            part = await asyncio.wait_for(anext(stream, None), pause)
        except TimeoutError:
            raise ApiError(408, f"body: nothing came for {pause:g} seconds", param="body", code="timeout") from None
        if part is None:
            break
        size += len(part)
        if size > MOST_BODY_BYTES:
            raise ApiError(413, f"body: at most {MOST_BODY_BYTES:,} bytes are accepted", param="body", code="too_large")
        parts.append(part)
    return b"".join(parts)
