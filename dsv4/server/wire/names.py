"""Names chosen by clients, in the form in which they are kept and logged."""

import hashlib

LONGEST_NAME = 64


def short_name(text: str, most: int = LONGEST_NAME) -> str:
    """A client's name for something, with at most `most` characters, all of them printable. Any other name is shortened
    and gets a digest, so that two names stay different.

    >>> short_name("nano"), short_name("a\x1b[31m")
    ('nano', 'a?[31m~6dbf2fd5')
    """
    if len(text) <= most and text.isprintable():
        return text
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=4).hexdigest()
    shown = "".join(char if char.isprintable() else "?" for char in text[: most - len(digest) - 1])
    return f"{shown}~{digest}"
