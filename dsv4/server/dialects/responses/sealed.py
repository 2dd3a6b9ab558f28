"""Reasoning as an opaque text that a client keeps and sends back, for those that store nothing here.

It is not a secret: whoever holds it has seen the reasoning, or may. It only must come back unharmed, so it carries a
checksum; a text that is not from here, or was changed, holds nothing.
"""

import base64
import zlib

PREFIX = "dsv4-"
MOST_CHARACTERS = 16 << 20


def seal(text: str) -> str:
    """`text` in an opaque form, letters, digits, `-` and `_` only."""
    raw = text.encode()
    packed = zlib.crc32(raw).to_bytes(4, "big") + zlib.compress(raw, 1)
    return PREFIX + base64.urlsafe_b64encode(packed).decode().rstrip("=")


def unseal(value: object) -> str | None:
    """The text that `seal` made this of; None for anything else."""
    if not isinstance(value, str) or not value.startswith(PREFIX):
        return None
    body = value.removeprefix(PREFIX)
    try:
        packed = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        inflate = zlib.decompressobj()
        # a small text may stand for a very large one
        raw = inflate.decompress(packed[4:], MOST_CHARACTERS)
        whole = inflate.eof and zlib.crc32(raw).to_bytes(4, "big") == packed[:4]
        return raw.decode() if whole else None
    except (ValueError, zlib.error):
        return None
