"""Who may ask, and how much: pages of other sites must not use a server that only this machine should reach.

A page in the user's browser can send requests to 127.0.0.1, and with DNS rebinding read the answers under a name of
its own. Both show in the headers: a Host that is not this machine, an Origin that is another site.
"""

import hashlib
import ipaddress
import json
from urllib.parse import urlsplit

from starlette.types import Scope

from dsv4.server.wire.errors import ApiError

# a user that is an object is read, to leave out its session, up to so many characters
LONGEST_USER_OBJECT = 16_384
LONGEST_NAME = 64


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
    """Whose cached prefixes a request may use: those of its key and of the first user named. A digest of both, of one
    length whatever they are called; "" for nobody in particular.

    Clients that name a session with the user would share nothing between sessions, so that part is left out.
    """
    user = next((str(user) for user in users if user not in (None, "")), "")
    try:
        fields = json.loads(user) if user.startswith("{") and len(user) <= LONGEST_USER_OBJECT else None
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict):
        user = json.dumps({name: value for name, value in fields.items() if "session" not in name}, sort_keys=True)
    user = user.split("_session_")[0]
    if not (key or user):
        return ""
    # two digests, so that no key and user read together are another key and user
    parts = (hashlib.blake2b(part.encode(errors="surrogatepass"), digest_size=32).digest() for part in (key, user))
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()


def short_name(text: str, most: int = LONGEST_NAME) -> str:
    """What a client calls something, as it is kept and logged: at most `most` characters, all of them printable. One
    that is not is cut and marked with a digest, so that two stay apart.

    >>> short_name("nano"), short_name("a\x1b[31m")
    ('nano', 'a?[31m~6dbf2fd5')
    """
    if len(text) <= most and text.isprintable():
        return text
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=4).hexdigest()
    shown = "".join(char if char.isprintable() else "?" for char in text[: most - len(digest) - 1])
    return f"{shown}~{digest}"
