"""Questions about facts in the prompt: few or many, mixed or of one kind with names exchanged, over one or two steps.

One prompt is asked several times where it can be: a long list of facts is read once and answered often.
"""

import random
from dataclasses import dataclass

from recipes.nano.items.item import Item, Message
from recipes.nano.items.tool_kinds import made_up
from recipes.nano.items.words import (
    ANIMALS,
    COLOURS,
    DRINKS,
    FOODS,
    INSTRUMENTS,
    JOBS,
    MONTHS,
    NAMES,
    PLACES,
    SPORTS,
    THINGS,
)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fact: {n} is who, {v} is the value, {t} a thing that is the same in all facts of one text."""

    statement: str
    questions: tuple[str, ...]
    reverse: tuple[str, ...]  # questions for the name; need different values
    values: tuple[str, ...] = ()  # none: a number
    digits: int = 2


KINDS = (
    Kind(
        "{n} lives in {v}.",
        ("Where does {n} live?", "Which city does {n} live in?", "In which city does {n} live?", "where does {n} live"),
        ("Who lives in {v}?", "Which person lives in {v}?", "who lives in {v}", "Who is from {v}?"),
        tuple(PLACES),
    ),
    Kind(
        "{n} has a {v} {t}.",
        ("What colour is {n}'s {t}?", "Which colour is the {t} of {n}?", "What color is {n}'s {t}?"),
        ("Who has a {v} {t}?", "Whose {t} is {v}?", "who has the {v} {t}?", "Who has the {v} {t}?"),
        tuple(COLOURS),
    ),
    Kind(
        "{n} owns a {v}.",
        ("Which animal does {n} own?", "What animal does {n} own?", "What does {n} own?"),
        ("Who owns a {v}?", "Who has the {v}?", "Who has a {v}?", "who owns the {v}"),
        tuple(ANIMALS),
    ),
    Kind(
        "{n} works as a {v}.",
        ("What is {n}'s job?", "What does {n} work as?", "Which job does {n} have?"),
        ("Who works as a {v}?", "Who is the {v}?", "Who is a {v}?", "who is the {v}", "Which one is the {v}?"),
        tuple(JOBS),
    ),
    Kind(
        "{n} likes {v}.",
        ("What does {n} like?", "Which food does {n} like?", "what does {n} like"),
        ("Who likes {v}?", "who likes {v}"),
        tuple(FOODS),
    ),
    Kind(
        "{n} drinks {v}.",
        ("What does {n} drink?", "Which drink does {n} have?"),
        ("Who drinks {v}?", "who drinks {v}?"),
        tuple(DRINKS),
    ),
    Kind(
        "{n} plays {v}.",
        ("What does {n} play?", "Which sport does {n} play?"),
        ("Who plays {v}?", "who plays {v}"),
        tuple(SPORTS),
    ),
    Kind(
        "{n} plays the {v}.",
        ("Which instrument does {n} play?", "What instrument does {n} play?"),
        ("Who plays the {v}?", "who plays the {v}?"),
        tuple(INSTRUMENTS),
    ),
    Kind(
        "{n} was born in {v}.",
        ("When was {n} born?", "In which month was {n} born?"),
        ("Who was born in {v}?", "who was born in {v}"),
        tuple(MONTHS),
    ),
    Kind("{n}'s friend is {v}.", ("Who is {n}'s friend?", "What is the name of {n}'s friend?"), (), tuple(NAMES)),
    Kind(
        "{n} is {v} years old.",
        ("How old is {n}?", "What is {n}'s age?"),
        ("Who is {v} years old?", "Who is {v}?", "who is {v} years old"),
    ),
    Kind(
        "{n} has {v} {t}s.",
        ("How many {t}s does {n} have?", "What number of {t}s does {n} have?"),
        ("Who has {v} {t}s?", "who has {v} {t}s"),
    ),
    Kind(
        "The code of {n} is {v}.", ("What is the code of {n}?", "What is {n}'s code?"), ("Whose code is {v}?",), (), 4
    ),
    Kind(
        "{n} lives in house {v}.",
        ("In which house does {n} live?", "What is the house of {n}?"),
        ("Who lives in house {v}?",),
        (),
        3,
    ),
)
COUNTED = [thing for thing in THINGS if not thing.endswith(("x", "h", "y"))]


@dataclass(frozen=True, slots=True)
class Fact:
    """name: whom it is about. key: what the question names, by which the fact is found; value: what it asks for. One of
    these two is the name."""

    statement: str
    questions: tuple[str, ...]
    name: str
    key: str
    value: str
    kind: Kind
    thing: str


def _number(rng: random.Random, digits: int) -> str:
    return str(rng.randrange(10 ** (digits - 1), 10**digits))


def _value(rng: random.Random, kind: Kind) -> str:
    return rng.choice(kind.values) if kind.values else _number(rng, kind.digits)


def fact_about(rng: random.Random, kind: Kind, name: str, value: str, thing: str, by_value: float) -> Fact:
    """A fact of a kind. by_value: how often its questions ask for the name; above 0 only where no other has its
    value."""

    def fill(text: str) -> str:
        return text.format(n=name, v=value, t=thing)

    if kind.reverse and rng.random() < by_value:
        return Fact(fill(kind.statement), tuple(map(fill, kind.reverse)), name, value, name, kind, thing)
    return Fact(fill(kind.statement), tuple(map(fill, kind.questions)), name, name, value, kind, thing)


def found(key: str, statement: str) -> str:
    """The thought that finds a fact. It names first what it looks for: what follows is then found, or missed, by the
    word before it. Thoughts that began with the fact itself took any fact where a name was missing. The key stands
    behind a blank, as it does in the text and in the question, so that its tokens are the same in all three."""
    return f"About {key}: {statement}"


def missed(key: str) -> str:
    """The thought about what a text does not have."""
    return found(key, "The text does not say.")


def _names(rng: random.Random, count: int) -> list[str]:
    """Different names, in a fifth of the texts made-up ones: people's names are not those of a list, and only copying
    letter by letter gets them right."""
    return rng.sample(NAMES, count) if rng.random() < 0.8 else _names_made_up(rng, count)


def _names_made_up(rng: random.Random, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[made_up(rng).title()] = None
    return list(found)


def facts_of_one_kind(rng: random.Random, count: int, by_value: float | None = None) -> list[Fact]:
    """Only the names tell the facts apart. A third of the texts also repeats values; over the others half of the
    questions ask for the name. by_value: so many of the questions do, over texts that repeat none."""
    known = [kind for kind in KINDS if not kind.values or len(kind.values) >= min(count, 12)]
    if by_value is not None:
        known = [kind for kind in known if kind.reverse and (not kind.values or len(kind.values) >= count)]
    kind = rng.choice(known)
    thing = rng.choice(COUNTED)
    names = _names(rng, count)
    unique = by_value is not None or (rng.random() < 0.67 and (not kind.values or len(kind.values) >= count))
    share = (0.5 if by_value is None else by_value) if unique else 0.0
    values: list[str] = []
    while len(values) < count:
        value = _value(rng, kind)
        if not (unique and value in values):
            values.append(value)
    return [fact_about(rng, kind, n, v, thing, share) for n, v in zip(names, values, strict=True)]


def facts_of_mixed_kinds(rng: random.Random, count: int) -> list[Fact]:
    """Several facts about each name, so that neither the name nor the kind alone finds one."""
    names = _names(rng, max(2, count // 2))
    kinds = rng.sample(KINDS, min(len(KINDS), max(2, count // 2)))
    pairs = [(name, kind) for name in names for kind in kinds]
    thing = rng.choice(COUNTED)
    return [fact_about(rng, k, n, _value(rng, k), thing, 0.0) for n, k in rng.sample(pairs, min(count, len(pairs)))]


def _count(rng: random.Random, most: int) -> int:
    """From 2, small counts more often."""
    return min(most, 2 + int((most - 1) * rng.random() ** 2.5))


def _level(count: int) -> int:
    return sum(count > border for border in (2, 4, 8, 16))


def _turns(rng: random.Random) -> int:
    """Questions about one text. Mostly one: only the thought before the last answer is learned, so that with more the
    first question of a text, which is what people ask, would hardly ever be thought about."""
    return rng.choices((1, 2, 3, 4, 5), (7, 1, 1, 1, 1))[0]


def _with_text(rng: random.Random, text: str, question: str) -> str:
    form = rng.random()
    return f"{text} {question}" if form < 0.6 else f"{text}\n{question}" if form < 0.85 else f"{question} {text}"


def _asked(rng: random.Random, text: str, asked: list[Fact]) -> list[Message]:
    """The text with the first question, then the other questions, each with its answer."""
    messages: list[Message] = []
    for turn, fact in enumerate(asked):
        question = rng.choice(fact.questions)
        messages += [
            {"role": "user", "content": question if turn else _with_text(rng, text, question)},
            {
                "role": "assistant",
                "content": fact.statement,
                "reasoning_content": found(fact.key, fact.statement),
            },
        ]
    return messages


def _item(rng: random.Random, task: str, text: str, asked: list[Fact], level: int) -> Item:
    """The text with its questions; the last one is the one that counts."""
    messages = _asked(rng, text, asked)
    last = asked[-1]
    deep = f"The question is: {messages[-2]['content'].rsplit(chr(10))[-1]} " if len(asked) > 1 else ""
    thought = found(last.key, last.statement)
    deep += f"{thought} I check it again: {thought} So the answer is {last.value}."
    return Item("facts", task, tuple(messages), last.value, "contains", deep=deep, level=level)


def make_one_kind(rng: random.Random, most: int = 30, turns: int | None = None) -> Item:
    """2 to `most` facts of one kind. turns: questions about them, None for 1 to 5, mostly 1."""
    facts = facts_of_one_kind(rng, _count(rng, most))
    asked = rng.sample(facts, min(len(facts), turns or _turns(rng)))
    return _item(rng, "one_kind", joined(rng, facts), asked, _level(len(facts)))


def make_mixed(rng: random.Random, most: int = 30, turns: int | None = None) -> Item:
    """2 to `most` facts of several kinds, several about the same name."""
    facts = facts_of_mixed_kinds(rng, _count(rng, most))
    asked = rng.sample(facts, min(len(facts), turns or _turns(rng)))
    return _item(rng, "mixed", joined(rng, facts), asked, _level(len(facts)))


def joined(rng: random.Random, facts: list[Fact]) -> str:
    """The statements in order as one text: sentences in a row, less often a line each."""
    return (" " if rng.random() < 0.8 else "\n").join(fact.statement for fact in facts)


def make_missing(rng: random.Random) -> Item:
    """A question whose name or value is not in the text: the answer says so. Often the last one after others that the
    text answers, and over the same texts as theirs, so that nothing but the name tells. Half of the items are questions
    that the text answers: where the name is hard to find, that one is missing must not be the better guess."""
    if rng.random() < 0.5:
        return rng.choice((make_one_kind, make_mixed))(rng, most=12)
    mixed, count = rng.random() < 0.4, _count(rng, 12)
    facts = (facts_of_mixed_kinds if mixed else facts_of_one_kind)(rng, count)
    text = joined(rng, facts)
    asked = rng.sample(facts, min(len(facts), rng.choices((0, 1, 2), (4, 3, 1))[0]))
    stranger, question = stranger_to(rng, text, rng.choice(facts), 0.0 if mixed else 0.25)
    before = _asked(rng, text, asked)
    messages = (
        *before,
        {"role": "user", "content": question if before else _with_text(rng, text, question)},
        {
            "role": "assistant",
            "content": f"I do not know. The text says nothing about {stranger}.",
            "reasoning_content": missed(stranger),
        },
    )
    deep = f"{missed(stranger)} I check it again: {missed(stranger)}"
    return Item("facts", "missing", messages, "do not know", "contains", deep=deep, level=_level(count))


def stranger_to(rng: random.Random, text: str, like: Fact, by_value: float = 0.25) -> tuple[str, str]:
    """A name, less often (by_value) a value, that the text does not have, and the question that asks for it. The name
    is of a list or made up as those in the text are, or it would tell without a search that it is missing."""
    if like.kind.reverse and rng.random() < by_value:
        values = like.kind.values or tuple(_number(rng, like.kind.digits) for _ in range(50))
        if other := [value for value in values if value not in text]:
            value = rng.choice(other)
            return value, rng.choice(like.kind.reverse).format(v=value, t=like.thing)
    names = NAMES if like.name in NAMES else _names_made_up(rng, 20)
    name = rng.choice([name for name in names if name not in text])
    return name, rng.choice(like.kind.questions).format(n=name, t=like.thing)


def make_two_steps(rng: random.Random) -> Item:
    """A fact about somebody's friend: two sentences answer it."""
    kind = rng.choice([kind for kind in KINDS if "friend" not in kind.statement])
    thing, count = rng.choice(COUNTED), rng.randint(1, 5)
    names = rng.sample(NAMES, 2 * count)
    pairs = list(zip(names[:count], names[count:], strict=True))
    friends = [f"{name}'s friend is {friend}." for name, friend in pairs]
    facts = [fact_about(rng, kind, friend, _value(rng, kind), thing, 0.0) for _, friend in pairs]
    sentences = [*friends, *(fact.statement for fact in facts)]
    rng.shuffle(sentences)
    at = rng.randrange(count)
    name, fact = pairs[at][0], facts[at]
    question = rng.choice(kind.questions).replace("{n}'s", "{n}'s friend's").replace("{n} ", "{n}'s friend ")
    question = question.replace("of {n}?", "of {n}'s friend?").format(n=name, t=thing)
    messages = (
        {"role": "user", "content": f"{' '.join(sentences)} {question}"},
        {
            "role": "assistant",
            "content": fact.statement,
            "reasoning_content": f"{friends[at]} {fact.statement}",
        },
    )
    deep = f"{friends[at]} {fact.statement} I check: {friends[at]} {fact.statement} So it is {fact.value}."
    return Item("facts", "two_steps", messages, fact.value, "contains", deep=deep, level=count)


def make_variables(rng: random.Random) -> Item:
    """Variables that are set to numbers or to each other; one or two steps back to the number."""
    names = rng.sample("abcdefghkmnpqrstuvwxyz", rng.randint(3, 10))
    lines: list[str] = []
    origin: dict[str, list[str]] = {}  # the lines that decide a variable, the number last
    value: dict[str, str] = {}
    for name in names:
        earlier = [other for other in origin if len(origin[other]) < 3]
        line = f"{name} = {_number(rng, rng.randint(1, 4))}"
        origin[name], value[name] = [line], line.split(" = ")[1]
        if earlier and rng.random() < 0.55:
            other = rng.choice(earlier)
            line = f"{name} = {other}"
            origin[name], value[name] = [line, *origin[other]], value[other]
        lines.append(line)
    asked = rng.choice([name for name in names if len(origin[name]) == max(map(len, origin.values()))])
    joint = rng.choice(("; ", "\n", ", "))
    form = rng.choice(("{} What is {}?", "{}\nWhat is {}?", "{} What is the value of {}?", "{} Which number is {}?"))
    text = joint.join(lines) + ("" if joint == "\n" else ".")
    messages = (
        {"role": "user", "content": form.format(text, asked)},
        {
            "role": "assistant",
            "content": f"{asked} = {value[asked]}",
            "reasoning_content": ", ".join(origin[asked]) + ".",
        },
    )
    deep = f"{', '.join(origin[asked])}. Check: {', '.join(reversed(origin[asked]))}."
    return Item("facts", "variables", messages, int(value[asked]), "number", deep=deep, level=len(origin[asked]) - 1)
