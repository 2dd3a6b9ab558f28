"""Words for generated questions: names and invented words that no text of the world holds."""

import random
import string
from collections.abc import Callable

ADJECTIVES = (
    "amber", "brave", "calm", "dusty", "eager", "faint", "gentle", "hollow", "icy", "jolly", "keen", "lively", "mellow",
    "narrow", "odd", "plain", "quiet", "rapid", "silver", "tidy", "upper", "vivid", "wild", "young", "ancient",
    "bitter",    "clever", "distant", "early", "fancy", "grand", "humble",
)  # fmt: skip
THINGS = (
    "anchor", "basket", "candle", "desert", "engine", "feather", "garden", "hammer", "island", "jacket", "kettle",
    "ladder", "mirror", "needle", "orchard", "pillow", "quarry", "ribbon", "saddle", "temple", "umbrella", "valley",
    "window", "yard", "zebra", "barrel", "cabin", "dolphin", "elbow", "falcon", "glacier", "harbor",
)  # fmt: skip
_STARTS, _VOWELS, _ENDS = "bdfgklmnprstvz", "aeiou", "lmnrst"


def pair(chance: random.Random) -> str:
    """Two words with a hyphen between them, as RULER's keys."""
    return f"{chance.choice(ADJECTIVES)}-{chance.choice(THINGS)}"


def number(chance: random.Random, digits: int = 7) -> str:
    """A number of that many digits."""
    return str(chance.randrange(10 ** (digits - 1), 10**digits))


def uuid(chance: random.Random) -> str:
    """A random UUID (version 4)."""
    text = f"{chance.getrandbits(128):032x}"
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"


def letters(chance: random.Random, length: int, alphabet: str = string.ascii_lowercase) -> str:
    """So many random letters."""
    return "".join(chance.choices(alphabet, k=length))


def name(chance: random.Random) -> str:
    """An invented name of two or three syllables, with a capital."""
    syllables = [chance.choice(_STARTS) + chance.choice(_VOWELS) for _ in range(chance.choice((2, 3)))]
    return ("".join(syllables) + chance.choice(_ENDS)).capitalize()


def distinct(make: Callable[[], str], count: int) -> list[str]:
    """So many different results of make()."""
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(make())
    return list(found)
