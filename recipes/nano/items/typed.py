"""How people type a wording: politeness, fillers, contractions, short forms, slips, capitals and marks."""

import random
import re
from collections.abc import Sequence

OPENERS = (
    "hey, ", "hello, ", "hi, ", "hi nano, ", "hello nano, ", "hey nano, ", "hi there, ", "hello there! ", "hey there, ",
    "good morning, ", "good evening, ", "good day, ", "hello! ", "hi! ", "hey! ", "so ", "so, ", "ok, ", "ok so ",
    "okay, ", "well, ", "um, ", "uh, ", "hmm, ", "er, ", "oh, ", "ah, ", "right, ", "now, ", "and ", "but ", "then ",
    "please, ", "nano, ", "nano: ", "sorry, ", "excuse me, ", "just curious, ", "quick question: ", "question: ",
    "one question: ", "i have a question. ", "one more thing, ", "by the way, ", "i wonder, ", "listen, ", "alright, ",
    "great, ", "thanks, ", "ok thanks, ", "honestly, ", "yo, ", "hi friend, ", "dear nano, ", "good, ", "next: ",
    "another question: ", "hi ", "hello ", "hey ", "ok ", "well ", "um ", "like, ", "actually, ", "first, ", "maybe, ",
)  # fmt: skip
CLOSERS = (
    " please", ", please", " pls", " nano", ", nano", " now", " then", " my friend", ", my friend", " thanks",
    ", thanks", ", thank you", " buddy", " mate", ", if i may ask", " exactly", ", do you know", " or not", ", hm",
    " actually", ", just asking", " by the way", " right now", " really", " for real", " again", " lol",
)  # fmt: skip
_CONTRACTIONS = (
    ("what is", "what's"), ("who is", "who's"), ("where is", "where's"), ("how is", "how's"), ("that is", "that's"),
    ("it is", "it's"), ("there is", "there's"), ("i am", "i'm"), ("you are", "you're"), ("we are", "we're"),
    ("do not", "don't"), ("does not", "doesn't"), ("did not", "didn't"), ("is not", "isn't"), ("are not", "aren't"),
    ("can not", "can't"), ("cannot", "can't"), ("could not", "couldn't"), ("would not", "wouldn't"),
    ("will not", "won't"), ("i will", "i'll"), ("i would", "i'd"), ("i have", "i've"), ("let us", "let's"),
    ("was not", "wasn't"), ("were not", "weren't"), ("have not", "haven't"), ("has not", "hasn't"),
)  # fmt: skip
_SHORT = (
    ("you", "u"), ("are", "r"), ("your", "ur"), ("please", "pls"), ("please", "plz"), ("thanks", "thx"),
    ("want to", "wanna"), ("going to", "gonna"), ("give me", "gimme"), ("what", "wat"), ("because", "cuz"),
    ("people", "ppl"), ("with", "w"), ("okay", "k"), ("something", "smth"), ("know", "kno"), ("see", "c"),
    ("for", "4"), ("about", "abt"), ("tomorrow", "tmrw"), ("today", "2day"), ("do you", "d'you"),
)  # fmt: skip
_MISSPELLINGS = (
    ("what", "waht"), ("the", "teh"), ("your", "you"), ("you're", "your"), ("their", "there"), ("tell", "tel"),
    ("write", "wirte"), ("write", "rite"), ("you", "yuo"), ("language", "langauge"), ("languages", "langages"),
    ("weather", "wether"), ("translate", "translait"), ("calculate", "calculat"), ("calculate", "calcualte"),
    ("remember", "remeber"), ("favourite", "favorit"), ("favourite", "favorite"), ("colour", "color"),
    ("because", "becuase"), ("speak", "speek"), ("which", "wich"), ("where", "were"), ("really", "realy"),
    ("people", "poeple"), ("about", "abuot"), ("don't", "dont"), ("can't", "cant"), ("does", "dose"),
    ("please", "plese"), ("explain", "explane"), ("explain", "expain"), ("mean", "meen"), ("know", "now"),
    ("computer", "computor"), ("internet", "internt"), ("believe", "beleive"), ("friend", "freind"),
    ("tomorrow", "tommorow"), ("beautiful", "beutiful"), ("doctor", "docter"), ("capital", "captial"),
    ("who", "hwo"), ("how", "hwo"), ("have", "hve"), ("thank", "thnak"), ("thanks", "tanks"), ("hello", "helo"),
    ("hello", "hallo"), ("is", "si"), ("and", "adn"), ("joke", "jok"), ("story", "storry"), ("poem", "peom"),
    ("program", "programm"), ("parameters", "paramters"), ("understand", "undestand"), ("trained", "traind"),
)  # fmt: skip
_LEARNER = (  # as people write who learn English
    (r"\b(a|an|the) ", ""), (r"\bdo you (have|know|like|speak|remember|need)\b", r"you \1"),
    (r"\bare you\b", "you are"),
    (r"\bcan you\b", "you can"), (r"\bwhat is your\b", "what your"), (r"\bwhat are your\b", "what your"),
    (r"\btell me\b", "say me"), (r"\bi am\b", "i"), (r"\bhow do i\b", "how i"), (r"\bhow do i\b", "how to"),
    (r"\bdoes\b", "do"), (r"\bto (make|write|tell|do|give)\b", r"\1"), (r"\bwhat do you\b", "what you"),
    (r"\bexplain\b", "explain me"), (r"\bcould you\b", "you could"), (r"\bwhere do you\b", "where you"),
    (r"\bwho (made|built|created) you\b", r"who you \1"), (r"\bi want\b", "i want that you"),
    (r"\bis there\b", "exists"),
)  # fmt: skip
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_ASKS = re.compile(
    r"(?i)(\w+[,!:] |so |and |but |ok |well |um |hi |hey |hello )?"
    r"(who|what|how|where|when|why|which|whose|are|do|does|did|can|is|will|should|could|would|am|have|"
    r"may|was|were|what's|who's|where's|how's|whats)\b"
)


def _replaced(rng: random.Random, text: str, table: Sequence[tuple[str, str]], share: float) -> str:
    """Each entry that the text has is applied with probability `share`."""
    for word, other in table:
        if word in text and rng.random() < share:
            text = re.sub(rf"\b{re.escape(word)}\b", other, text)
    return text


def _slip(rng: random.Random, text: str) -> str:
    """Two letters exchanged, one left out or doubled, or the key beside it."""
    at = rng.randrange(1, len(text) - 1)
    pair = text[at : at + 2]
    if not (pair.isalpha() and pair.isascii()):
        return text
    row = next(keys for keys in _KEYS if text[at].lower() in keys)
    near = row[max(0, row.index(text[at].lower()) - 1)]
    made = rng.choice((pair[::-1], pair[1], text[at] * 2 + pair[1], near + pair[1]))
    return text[:at] + made + text[at + 2 :]


def _cased(rng: random.Random, text: str) -> str:
    form = rng.random()
    if form < 0.58:
        text = text[:1].upper() + text[1:]
        return re.sub(r"\bi\b", "I", text) if rng.random() < 0.8 else text
    if form < 0.88:
        return text.lower()
    if form < 0.92:
        return text.upper()
    return text


def _marked(rng: random.Random, text: str) -> str:
    """With a mark at the end, or without."""
    if text[-1:] in "?.!":
        return text
    end = rng.random()
    if end < 0.3:
        return text
    if _ASKS.match(text):
        return text + rng.choices(("?", "??", " ?", "?!", "."), (30, 1, 2, 1, 1))[0]
    return text + rng.choices((".", "!", "...", "!!", " ."), (16, 6, 1, 1, 1))[0]


def typed(rng: random.Random, text: str, *, bare: bool = False, closers: bool = True) -> str:
    """The wording as somebody types it. bare: nothing comes before or after it, as for a greeting. closers: whether
    something may come after it."""
    if not bare:
        form = rng.random()
        if form < 0.24:
            text = rng.choice(OPENERS) + text
        elif form < 0.36 and closers:
            text += rng.choice(CLOSERS)
    text = _replaced(rng, text, _CONTRACTIONS, 0.4)
    if rng.random() < 0.12:
        text = _replaced(rng, text, _SHORT, 0.6)
    if rng.random() < 0.08:
        text = _replaced(rng, text, _MISSPELLINGS, 0.5)
    if rng.random() < 0.07:
        pattern, other = rng.choice(_LEARNER)
        text = re.sub(pattern, other, text).strip() or text
    if rng.random() < 0.15:
        text = text.replace("'", "")
    if rng.random() < 0.12:
        text = text.replace(",", "").replace(":", "")
    for _ in range(rng.choices((0, 1, 2), (88, 9, 3))[0]):
        if len(text) > 6:
            text = _slip(rng, text)
    return _marked(rng, _cased(rng, text))
