"""What people type first and no other family has: two operations with their order, the next number, counting aloud,
facts about things and about themselves, and who of two is older."""

import random

from recipes.nano.items import steps
from recipes.nano.items.arithmetic import FORMS, SIGNS, solved
from recipes.nano.items.facts import COUNTED, found, missed
from recipes.nano.items.item import Item, Message
from recipes.nano.items.patterns import text_of
from recipes.nano.items.problems import SOLVERS, worked_out
from recipes.nano.items.words import ANIMALS, COLOURS, FOODS, JOBS, NAMES, PLACES, ROOMS, SPORTS, THINGS

_AFTER = (
    "[What|Which number] comes after {n}?", "what comes [after|next after] {n}",
    "What is the [next number|number] after {n}?", "What number is after {n}?", "What is one more than {n}?",
)  # fmt: skip
_BEFORE = (
    "[What|Which number] comes before {n}?", "What is the number before {n}?", "what comes before {n}",
    "What is one less than {n}?",
)  # fmt: skip
_DOUBLE = ("[Double|double] {n}[.|]", "What is twice {n}?", "What is [the double of|double] {n}?", "two times {n}")
_SQUARE = ("What is the square of {n}?", "square of {n}", "{n} squared", "What is {n} squared?", "What is {n} * {n}?")
_SUM = (
    "What is the sum of {l}?", "what is the sum of {l}", "Add {l}.", "Sum {l}", "Add up {l}.", "[Total|total] of {l}?",
    "What do you get if you add {l}?", "What is {l} [together|added together|in total]?",
)  # fmt: skip
_DECIMALS = (
    "Which is [bigger|larger|greater], {a} or {b}?", "which number is [larger|bigger]: {a} or {b}",
    "{a} or {b}, which is bigger?", "What is larger, {a} or {b}?", "is {a} or {b} larger?",
)  # fmt: skip
_COUNT_TO = (
    "[Count|count] to {b}[|.]", "[Can|could] you count to {b}[?|]", "Please count to {b}.", "count up to {b}",
    "Count from 1 to {b}[|.]", "[Say|List] the numbers from 1 to {b}.",
)  # fmt: skip
_COUNT_FROM = (
    "[Count|count] from {a} to {b}[|.]", "[Can|could] you count from {a} to {b}[?|]",
    "List the numbers from {a} to {b}.",
    "[Say|Give me] all numbers [from|between] {a} [to|and] {b}[|.]",
)  # fmt: skip
_COUNT_DOWN = (
    "[Count|count] down from {b}[|.]",
    "Can you count [down|backwards] from {b}?",
    "count backwards from {b}",
)
# about a thing or an animal {k}: what is said, what is asked, and the values
_ABOUT = (
    ("The {k} is {v}.", "[What|Which] [colour|color] is the {k}?", (THINGS, ANIMALS), COLOURS),
    ("The {k} is in the {v}.", "[Where is the {k}|In which room is the {k}|where is the {k}|Where can I find the {k}]?",
     (THINGS, ANIMALS), ROOMS),
    ("The {k} costs {v} dollars.", "[How much is the {k}|What does the {k} cost|How much does the {k} cost]?",
     (THINGS,), None),
    ("The {k} belongs to {v}.", "[Who owns the {k}|Whose {k} is it|Who does the {k} belong to]?",
     (THINGS, ANIMALS), NAMES),
    ("The {k} eats {v}.", "What does the {k} eat?", (ANIMALS,), FOODS),
    ("The {k} lives in {v}.", "Where does the {k} live?", (ANIMALS,), PLACES),
)  # fmt: skip
# about the user: what is said, what is asked, the answer, and the values; {k} is a thing or an animal
_MINE = (
    ("I live in {v}.", "Where do I live?", "You live in {v}.", PLACES),
    ("I am {v} years old.", "How old am I?", "You are {v} years old.", None),
    ("I like {v}.", "What do I like?", "You like {v}.", FOODS),
    ("I work as a {v}.", "What is my job?", "You work as a {v}.", JOBS),
    ("I play {v}.", "[What|Which sport] do I play?", "You play {v}.", SPORTS),
    ("I have {v} {k}s.", "How many {k}s do I have?", "You have {v} {k}s.", None),
    ("My favourite colour is {v}.", "What is my favourite colour?", "Your favourite colour is {v}.", COLOURS),
    ("My {a} is called {v}.", "[What is my {a} called|What is the name of my {a}]?", "Your {a} is called {v}.", NAMES),
    ("My {k} is {v}.", "What colour is my {k}?", "Your {k} is {v}.", COLOURS),
    ("My friend is called {v}.", "What is my friend's name?", "Your friend is called {v}.", NAMES),
    ("My {k} is in the {v}.", "Where is my {k}?", "Your {k} is in the {v}.", ROOMS),
)  # fmt: skip
_HEARD = ("I see.", "Good to know.", "Thank you, I know that now.", "All right.")
_PAIRS = (
    ("taller", "shorter"), ("older", "younger"), ("faster", "slower"), ("stronger", "weaker"), ("bigger", "smaller"),
)  # fmt: skip
_MISSING, _TWO_TURNS, _WITH_MORE = 0.15, 0.4, 0.5


def _said(task: str, question: str, thought: str, reply: str, answer: object, verifier: str = "contains") -> Item:
    assistant = {"role": "assistant", "content": reply, "reasoning_content": thought}
    deep = f"{thought}\ncheck\n{thought}"
    return Item("facts", task, ({"role": "user", "content": question}, assistant), answer, verifier, deep=deep)


def make_mixed(rng: random.Random) -> Item:
    """A product within a sum or a difference, or a sum or a difference in brackets that is multiplied. The thought
    writes it down, works out what comes first, and puts the result in its place."""
    a, b, c = (rng.randrange(2, 13) for _ in range(3))
    sign, ahead = rng.choice("+-"), rng.random() < 0.5
    if rng.random() < 0.5:
        b, c = max(b, c), min(b, c)
        lines, inner = _worked(sign, b, c)
        text, left = f"({b}{sign}{c})", str(inner)
        pair = (a, inner) if ahead else (inner, a)
        text, left = (f"{a}*{text}", f"{a}*{left}") if ahead else (f"{text}*{a}", f"{left}*{a}")
        more, result = _worked("*", *pair)
    else:
        lines, inner = _worked("*", b, c)
        if ahead:
            a = _below_100(rng) + (inner if sign == "-" else 0)
            text, left = f"{a}{sign}{b}*{c}", f"{a}{sign}{inner}"
            more, result = _worked(sign, a, inner)
        else:
            a = rng.randrange(1, inner)
            text, left = f"{b}*{c}{sign}{a}", f"{inner}{sign}{a}"
            more, result = _worked(sign, inner, a)
    thought = [text, *lines, left, *more]
    return solved("math", "mixed", rng.choice(FORMS).format(_spaced(rng, text)), thought, [left, *more], result)


def _worked(sign: str, a: int, b: int) -> tuple[list[str], int]:
    """The steps of one operation, and its result."""
    return SOLVERS[sign](a, b), worked_out(sign, a, b)


def _spaced(rng: random.Random, text: str) -> str:
    """As people type it: with blanks or without, sometimes with an x."""
    form = rng.choices((0, 1, 3), (5, 4, 1))[0]
    return "".join(SIGNS[char][0 if form == 3 and char != "*" else form] if char in SIGNS else char for char in text)


def _below_100(rng: random.Random) -> int:
    return rng.randrange(1, 13) if rng.random() < 0.6 else rng.randrange(10, 100)


def make_near(rng: random.Random) -> Item:
    """The number after or before another one, twice a number, a square, or the sum of a list in words."""
    number = max(1, rng.choice((rng.randrange(20), rng.randrange(100), rng.randrange(10_000))))
    match rng.randrange(5):
        case 0:
            forms, lines, result = _AFTER, steps.add((number, 1)), number + 1
        case 1:
            forms, lines, result = _BEFORE, steps.subtract(number, 1), number - 1
        case 2:
            number = number % 100 + 1
            forms, lines, result = _DOUBLE, steps.multiply(number, 2), 2 * number
        case 3:
            number = max(2, number % 30)
            forms, lines, result = _SQUARE, steps.multiply(number, number), number**2
        case _:
            return _sum_of_a_list(rng)
    question = text_of(rng, rng.choice(forms)).format(n=number)
    return solved("math", "near", question, lines, lines, result)


def _sum_of_a_list(rng: random.Random) -> Item:
    terms = [_below_100(rng) for _ in range(rng.choice((2, 3, 3, 4)))]
    text = ", ".join(map(str, terms[:-1])) + f" and {terms[-1]}" if rng.random() < 0.7 else ", ".join(map(str, terms))
    question = text_of(rng, rng.choice(_SUM)).format(l=text)
    return solved("math", "near", question, steps.add(terms), steps.add(terms[::-1]), sum(terms))


def make_decimals(rng: random.Random) -> Item:
    """Which of two numbers with a point is larger: the thought writes both with as many digits."""
    digits = rng.choice((1, 1, 2))
    whole = rng.randrange(10 ** (digits - 1), 10**digits)
    other = whole if rng.random() < 0.6 else rng.randrange(10 ** (digits - 1), 10**digits)
    a, b = f"{whole}.{_digits(rng)}", f"{other}.{_digits(rng)}"
    if float(a) == float(b):
        b += "5"
    size = max(len(a), len(b))
    x, y = a.ljust(size, "0"), b.ljust(size, "0")
    pairs = steps.compare(int(x.replace(".", "")), int(y.replace(".", ""))).partition(":")[2]
    winner = a if float(a) > float(b) else b
    question = text_of(rng, rng.choice(_DECIMALS)).format(a=a, b=b)
    return _said("decimals", question, f"{x}?{y}:{pairs}\n{winner}", f"{winner} is larger.", winner)


def _digits(rng: random.Random) -> str:
    """Behind a point: one or two, the last one no 0."""
    return f"{rng.randrange(10) if rng.random() < 0.5 else ''}{rng.randrange(1, 10)}"


def make_counting(rng: random.Random) -> Item:
    """All numbers up to another one, between two, or backwards; at most twenty."""
    least, kind = 1, rng.choices(("to", "from", "down"), (5, 3, 2))[0]
    most = rng.choice([n for n in range(2, 21) if n != 10])  # up to ten small talk counts, in its own words
    if kind == "from":
        least = rng.randrange(2, 90)
        most = least + rng.randrange(2, 16)
    row = list(range(least, most + 1))[:: -1 if kind == "down" else 1]
    question = text_of(rng, rng.choice({"to": _COUNT_TO, "from": _COUNT_FROM, "down": _COUNT_DOWN}[kind]))
    reply = ", ".join(map(str, row))
    thought = f"I count {'down ' if kind == 'down' else ''}from {row[0]} to {row[-1]}."
    return _said("counting", question.format(a=least, b=most), thought, f"{reply}.", row, "order")


def make_things(rng: random.Random) -> Item:
    """A fact of two to six about things and animals, or none: found as facts about people are."""
    statement, asked, keys, values = rng.choice(_ABOUT)
    known = list(rng.choice(keys))
    rng.shuffle(known)
    count = rng.choice((2, 2, 2, 3, 3, 4, 5, 6))
    given = known[: count + 1]
    told = [statement.format(k=key, v=_value(rng, values)) for key in given]
    key = given[count if rng.random() < _MISSING else rng.randrange(count)]
    missing = key == given[count]
    question = f"{' '.join(told[:count])} {text_of(rng, asked).format(k=key)}"
    if missing:
        reply = f"I do not know. The text says nothing about {key}."
        return _said("things", question, missed(key), reply, "do not know")
    fact = told[given.index(key)]
    value = fact.removesuffix(".").removesuffix(" dollars").rsplit(" ", 1)[1]
    return _said("things", question, found(key, fact), fact, value)


def _value(rng: random.Random, values: list[str] | None) -> str:
    return str(rng.randrange(2, 100)) if values is None else rng.choice(values)


def make_mine(rng: random.Random) -> Item:
    """What users say of themselves, and ask then: in the same message, or in the next one."""
    statement, asked, answer, values = rng.choice(_MINE)
    told, words = _filled(rng, statement, values)
    others = [_filled(rng, one[0], one[3])[0] for one in _MINE if one[0] != statement]
    row = [told, *(rng.sample(others, rng.choice((1, 1, 2))) if rng.random() < _WITH_MORE else ())]
    rng.shuffle(row)
    question, reply = text_of(rng, asked).format(**words), answer.format(**words)
    item = _said("mine", f"{' '.join(row)} {question}", f"The user says: {told}", reply, words["v"])
    if rng.random() >= _TWO_TURNS:
        return item
    heard: tuple[Message, ...] = (
        {"role": "user", "content": " ".join(row)},
        {"role": "assistant", "content": rng.choice(_HEARD), "reasoning_content": "The user tells me something."},
        {"role": "user", "content": question},
    )
    return Item("facts", "mine", (*heard, item.messages[-1]), words["v"], "contains", deep=item.deep)


def _filled(rng: random.Random, statement: str, values: list[str] | None) -> tuple[str, dict[str, str]]:
    words = {"k": rng.choice(COUNTED), "a": rng.choice(ANIMALS), "v": _value(rng, values)}
    return statement.format(**words), words


def make_older(rng: random.Random) -> Item:
    """Who of two is older, has more, or is what is said of one of them."""
    first, second = rng.sample(NAMES, 2)
    if rng.random() < 0.35:
        return _told_of_one(rng, first, second)
    a, b = rng.sample(range(1, 100), 2) if rng.random() < 0.5 else rng.sample(range(1, 21), 2)
    thing, large = rng.choice(COUNTED), rng.random() < 0.5
    form, asked = rng.choice(
        (
            ("{} is {}.", "older" if large else "younger"),
            ("{} is {} years old.", "older" if large else "younger"),
            ("{} is {} cm tall.", "taller" if large else "smaller"),
            (f"{{}} has {{}} {thing}s.", f"more {thing}s" if large else f"fewer {thing}s"),
            ("{} scored {} points.", "more points" if large else "fewer points"),
        )
    )
    verb = "has" if " " in asked else "is"
    winner = first if (a > b) == large else second
    value = max(a, b) if large else min(a, b)
    # each name behind its number too: what is found by a number stands behind it
    thought = f"{first} {a} {first}, {second} {b} {second}\n{steps.compare(a, b)}\n{asked}: {value} {winner}"
    question = f"{form.format(first, a)} {form.format(second, b)} Who {verb} {asked}?"
    return _said("older", question, thought, f"{winner} {verb} {asked}.", winner)


def _told_of_one(rng: random.Random, first: str, second: str) -> Item:
    """`Bob is taller than Tom. Who is taller?`, or who is shorter."""
    pair = rng.choice(_PAIRS)
    word, other = pair if rng.random() < 0.7 else pair[::-1]
    same = rng.random() < 0.5
    winner, asked = (first, word) if same else (second, other)
    told = f"{first} is {word} than {second}."
    thought = f"{told}\n{word} {first}, {other} {second}\n{asked} {winner}"
    return _said("older", f"{told} Who is {asked}?", thought, f"{winner} is {asked}.", winner)
