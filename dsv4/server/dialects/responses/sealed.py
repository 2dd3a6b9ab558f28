"""Reasoning as an opaque text, which a client keeps and sends back, because the server stores nothing.

The text is not secret: its holder may read the reasoning. It must come back unchanged, so it has a checksum. A text
from another server, or a changed one, is ignored.
"""

import base64
import zlib

PREFIX = "dsv4-"
MOST_CHARACTERS = 16 << 20


def seal(text: str) -> str:
    """`text` in an opaque form of letters, digits, `-` and `_`."""
    raw = text.encode()
    packed = zlib.crc32(raw).to_bytes(4, "big") + zlib.compress(raw, 1)
    return PREFIX + base64.urlsafe_b64encode(packed).decode().rstrip("=")


def unseal(value: object) -> str | None:
    """The text that was sealed as `value`; None if `value` is not an unchanged result of `seal`."""
    if not isinstance(value, str) or not value.startswith(PREFIX):
        return None
    body = value.removeprefix(PREFIX)
    try:
        packed = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        inflate = zlib.decompressobj()
        # a short sealed text may hold a very long one
        raw = inflate.decompress(packed[4:], MOST_CHARACTERS)
        whole = inflate.eof and zlib.crc32(raw).to_bytes(4, "big") == packed[:4]
        return raw.decode() if whole else None
    except (ValueError, zlib.error):
        return None
