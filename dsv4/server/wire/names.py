"""The names that clients choose, as they are kept and logged."""

import hashlib

LONGEST_NAME = 64


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
