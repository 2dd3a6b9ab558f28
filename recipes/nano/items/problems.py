"""Word problems of one to three steps; the thought names the operations and works them out."""

import random
from collections.abc import Callable

from recipes.nano.items import steps
from recipes.nano.items.arithmetic import solved
from recipes.nano.items.item import Item
from recipes.nano.items.patterns import text_of
from recipes.nano.items.words import NAMES, words

THINGS = words(
    "apples books cards coins stamps balls cups pens eggs shells stones photos nuts keys boxes lamps pears plums "
    "cookies candles flowers tickets pencils marbles stickers bottles plates spoons shirts socks hats shoes "
    "toys cars trucks "
    "bricks seeds trees letters songs points dollars euros pages stars buttons beads ribbons chairs tables sheep goats "
    "ducks hens fish birds sweets cakes buns lemons oranges melons onions carrots potatoes tools nails screws batteries"
)
PLACES = words(
    "shop school library market farm museum station garden bakery factory office hotel hospital zoo park kitchen barn "
    "harbour theatre club store warehouse workshop village"
)
# a pattern of the text, the ranges of its numbers, and the plan: the first number, then operations from left to right
Template = tuple[str, tuple[tuple[int, int], ...], str]
_NOW = "How many {t} [does {n} have|has {n}|does {n} have now|has {n} now]?"
_LEFT = "How many {t} [are left|remain|are still there|does {n} still have|does {n} keep]?"
_ALL = "How many {t} [do they have together|do they have in all|are there altogether|is that in total|do all have]?"
_THERE = "How many {t} are [there|there now|in the {p}|in the {p} now]?"
_GETS = "[gets|buys|finds|receives|wins|collects|is given|picks|makes|earns]"
_LOSES = "[loses|sells|gives away|uses|breaks|spends|throws away|drops|hides|returns]"
_EACH = "[with {b} {t} each|of {b} {t}|that hold {b} {t} each]"
TEMPLATES: tuple[Template, ...] = (
    ("{n} has {a} {t}. {m} [gives|brings|sends|sells] {n} {b} more. " + _NOW, ((2, 999), (2, 999)), "a+b"),
    ("{n} has {a} {t} and " + _GETS + " {b} [|more|others]. " + _NOW, ((2, 999), (2, 999)), "a+b"),
    ("There are {a} {t} in the {p}. {n} [brings|adds|puts in] {b} [|more]. " + _THERE, ((10, 2000), (2, 999)), "a+b"),
    ("{n} has {a} {t} and {m} has {b} [|{t}]. " + _ALL, ((2, 999), (2, 999)), "a+b"),
    ("{n} " + _GETS + " {a} {t} on [Monday|Friday|one day] and {b} on [Sunday|the next day]. " + _NOW,
     ((2, 900), (2, 900)), "a+b"),
    ("A {p} [sells|makes|orders] {a} {t} in the morning and {b} in the [evening|afternoon]. How many {t} is that?",
     ((2, 900), (2, 900)), "a+b"),
    ("{n} has {a} {t}. {m} has {b} more. How many {t} does {m} have?", ((2, 900), (2, 900)), "a+b"),
    ("{n} has {a} {t}. {n} [gives|sends|sells] {b} to {m}. " + _LEFT, ((100, 999), (2, 100)), "a-b"),
    ("A {p} has {a} {t} and [sells|loses|gives away|uses] {b}. How many {t} [remain|are left]?",
     ((500, 2000), (2, 500)), "a-b"),
    ("{n} has {a} {t} and " + _LOSES + " {b} [|of them]. " + _LEFT, ((100, 999), (2, 100)), "a-b"),
    ("{n} has {a} {t}, {m} has {b}. How many more {t} does {n} have [|than {m}]?", ((100, 999), (2, 100)), "a-b"),
    ("{n} [wants|needs|must have] {a} {t} and has {b}. How many {t} [are missing|does {n} still need]?",
     ((100, 999), (2, 100)), "a-b"),
    ("{n} has {a} {t}. {m} has {b} [fewer|less]. How many {t} does {m} have?", ((100, 999), (2, 100)), "a-b"),
    ("There were {a} {t} in the {p}. Now there are {b}. How many {t} are [gone|missing]?",
     ((100, 999), (2, 100)), "a-b"),
    ("{n} and {m} have {a} {t} together. {m} has {b}. How many {t} does {n} have?", ((100, 999), (2, 100)), "a-b"),
    ("{n} [fills|packs|carries|buys] {a} [bags|boxes|baskets|bowls] " + _EACH + ". How many {t} [are that|is that]?",
     ((2, 20), (2, 60)), "a*b"),
    ("Each of {a} [children|friends|teachers|farmers] has {b} {t}. How many {t} do they have in all?",
     ((2, 30), (2, 30)), "a*b"),
    ("A [row|box|shelf|bag] has {a} {t}. How many {t} are in {b} [rows|of them]?", ((2, 60), (2, 20)), "a*b"),
    ("{n} " + _GETS + " {a} {t} [a day|every day|each day]. How many {t} is that [in|after] {b} days?",
     ((2, 60), (2, 20)), "a*b"),
    ("{n} has {a} {t}, [finds|buys|gets|wins] {b} and " + _LOSES + " {c}. " + _NOW, ((50, 900), (2, 99), (2, 50)),
     "a+b-c"),
    ("{n} has {a} {t}. {m} takes {b} and {o} brings {c}. " + _NOW, ((99, 900), (2, 99), (2, 99)), "a-b+c"),
    ("{a} {t} [lie|are|stand] in the {p}. {b} are [sold|taken|broken] and {c} come. How many are there?",
     ((99, 900), (2, 99), (2, 99)), "a-b+c"),
    ("{n} has {a} [boxes|bags] " + _EACH + " and {c} more {t}. How many {t} is that?",
     ((2, 12), (2, 50), (2, 99)), "a*b+c"),
    ("{n} packs {a} [boxes|bags] of {b} {t} and [sells|loses|gives away] {c} {t}. How many are left?",
     ((3, 12), (10, 50), (2, 30)), "a*b-c"),
    ("{n} has {a} {t}, {m} has {b}, {o} has {c}. " + _ALL, ((2, 999), (2, 999), (2, 999)), "a+b+c"),
    ("A {p} gets {a} {t} on Monday, {b} on Tuesday and {c} on Friday. How many {t} is that?",
     ((2, 900), (2, 900), (2, 900)), "a+b+c"),
    ("{n} has {a} {t}, gives {b} to {m} and {c} to {o}. " + _LEFT, ((300, 900), (2, 99), (2, 99)), "a-b-c"),
    ("{n} finds {a} {t} a day for {b} days and " + _LOSES + " {c}. How many {t} remain?",
     ((10, 60), (3, 12), (2, 30)), "a*b-c"),
    ("{n} has {a} {t}. {m} has {b} more than {n}. " + _ALL.replace("all", "both"), ((2, 500), (2, 300)), "a+b+a"),
    ("{n} has {a} {t}. {m} has {b} times as many. How many {t} do [both|they] have?", ((2, 90), (2, 9)), "a*b+a"),
    ("A {p} has {a} {t}, [sells|loses] {b} on Monday and {c} on Tuesday and gets {d} new ones. How many {t} are there?",
     ((500, 2000), (2, 250), (2, 250), (2, 250)), "a-b-c+d"),
    ("{n} buys {a} [bags|boxes] of {b} {t}, gets {c} from {m} and " + _LOSES + " {d}. How many {t} are left?",
     ((3, 12), (10, 50), (2, 99), (2, 30)), "a*b+c-d"),
    ("{n} has {a} {t}, {m} has {b} and {o} has {c}. They give away {d}. How many {t} are left?",
     ((50, 900), (50, 900), (50, 900), (2, 99)), "a+b+c-d"),
    # as people type them: about themselves, with pronouns and few words
    ("I [have|had|own] {a} {t}. I [give away|lose|sell|use|give {n}|break|give my friend|drop] {b}. How many "
     "[are left|do I have left|do I still have|remain|do I have now]?", ((100, 999), (2, 100)), "a-b"),
    ("I have {a} {t} and [buy|get|find|win|am given] {b} more. How many {t} do I have [|now]?",
     ((2, 999), (2, 999)), "a+b"),
    ("I have {a} {t}, {n} has {b}. How many {t} do we have [together|in all|in total]?", ((2, 999), (2, 999)), "a+b"),
    ("A [box|bag|basket|jar|drawer] [has|holds|contains] {a} {t}. [I take|You take|{n} takes|We take] {b} "
     "[|out|away]. How many [are left|remain|{t} are left|are still inside|are in it now]?",
     ((100, 999), (2, 100)), "a-b"),
    ("There are {a} {t} [in a box|on a table|in the {p}|in a bag|on a plate]. {n} takes {b} [|of them|away]. "
     "How many [are left|remain|{t} are left]?", ((100, 999), (2, 100)), "a-b"),
    ("{n} [has|buys|carries|owns] {a} [bags|boxes|baskets|jars|packs] [with|of] {b} {t} [|each]. How many {t} does "
     "[{n}|he|she] have [|in all|in total|altogether]?", ((2, 20), (2, 60)), "a*b"),
    ("There are {a} [boxes|bags|rows|shelves] with {b} {t} [|each]. How many {t} are there [|in all|in total]?",
     ((2, 20), (2, 60)), "a*b"),
    ("{a} [bags|boxes|baskets] with {b} {t} each. How many {t} [is that|are there]?", ((2, 20), (2, 60)), "a*b"),
    ("[A ticket|A book|A lamp|One cake|One hat] costs {a} [dollars|euros]. How much do {b} of them cost?",
     ((2, 60), (2, 20)), "a*b"),
    ("{n} pays {a} [dollars|euros] and gets {b} back. How much did it cost?", ((100, 999), (2, 100)), "a-b"),
    ("{n} is {a} years old. How old will [he|she|{n}] be in {b} years?", ((5, 80), (2, 20)), "a+b"),
    ("{n} is {a} years old. {m} is {b} years older. How old is {m}?", ((5, 80), (2, 20)), "a+b"),
    ("{n} is {a} years old. {m} is {b} years younger. How old is {m}?", ((30, 90), (2, 25)), "a-b"),
    ("{n} had {a} {t} and now has {b}. How many [did {n} lose|are gone|are missing]?", ((100, 999), (2, 100)), "a-b"),
    ("[If|When] {n} has {a} {t} and [loses|gives away|sells|uses] {b}, how many [are left|remain|does {n} have]?",
     ((100, 999), (2, 100)), "a-b"),
    ("[If|When] I have {a} {t} and you give me {b}, how many do I have?", ((2, 999), (2, 999)), "a+b"),
    ("{n} has {a} {t}. [He|She] [eats|loses|sells|gives away|uses] {b}. How many [does he have|does she have|"
     "are left|remain|{t} are left]?", ((100, 999), (2, 100)), "a-b"),
    ("{n} has {a} {t}. [He|She] [buys|gets|finds|wins] {b} more. How many [does he have now|does she have now|"
     "are that]?", ((2, 999), (2, 999)), "a+b"),
    ("{a} [birds|cats|children|people] [sit|wait|are] [in a tree|in a room|on a bus|at home]. {b} [go|leave|"
     "go away|run away]. How many [are left|stay]?", ((100, 999), (2, 100)), "a-b"),
    ("{a} [birds|people|children] are [on a bus|on a roof|in a park]. {b} more come. How many are there [|now]?",
     ((2, 999), (2, 999)), "a+b"),
    ("[A bus has {a} people|There are {a} people on a bus|A train has {a} people]. {b} get off and {c} get on. "
     "How many [people are there|people are on it|are there] [|now]?", ((99, 900), (2, 99), (2, 99)), "a-b+c"),
    ("I have {a} dollars. I [spend|pay|give away] {b} and [get|earn|find] {c}. "
     "How [many dollars|much] do I have [|now]?", ((99, 900), (2, 99), (2, 99)), "a-b+c"),
    ("{n} [reads|writes] {a} pages on Monday and {b} [|pages] on Tuesday. How many pages is that?",
     ((2, 99), (2, 99)), "a+b"),
    ("A [hat|cup|book] costs {a} dollars and a [bag|lamp|coat] costs {b} dollars. How much [is that|do both cost]?",
     ((2, 99), (2, 99)), "a+b"),
    ("I buy {a} {t} for {b} dollars each. How much do I pay?", ((2, 20), (2, 60)), "a*b"),
)  # fmt: skip
SOLVERS: dict[str, Callable[[int, int], list[str]]] = {
    "+": lambda a, b: steps.add((a, b)), "-": steps.subtract, "*": steps.multiply,
}  # fmt: skip
BACK = {"+": "-", "-": "+"}
_SMALL = 0.5  # of the problems: numbers up to 20, which people ask about most


def make_problem(rng: random.Random) -> Item:
    """A word problem with names, things and places."""
    text, ranges, plan = rng.choice(TEMPLATES)
    text = text_of(rng, text)
    numbers = _numbers(rng, ranges, plan)
    first, second, third = rng.sample(NAMES, 3)
    thing = rng.choice(THINGS)
    question = text.format(n=first, m=second, o=third, t=thing, p=rng.choice(PLACES), **numbers)
    operands, signs = [numbers[letter] for letter in plan[::2]], plan[1::2]
    # all operations at once, while the text is near; then one after another
    lines = ["".join(str(numbers.get(c, c)) for c in plan)] if len(signs) > 1 else []
    value = operands[0]
    for sign, other in zip(signs, operands[1:], strict=True):
        before, value = value, worked_out(sign, value, other)
        lines += SOLVERS[sign](before, other)
    check = SOLVERS[BACK[sign]](value, other) if sign in BACK else steps.multiply(other, before)
    return solved(
        "math", "problem", question, lines, check, value, level=len(signs) - 1, unit=thing * (thing in question)
    )


def _numbers(rng: random.Random, ranges: tuple[tuple[int, int], ...], plan: str) -> dict[str, int]:
    """A number for each letter of the plan: in its range, or small ones that leave something after every step."""
    letters = "abcd"[: len(ranges)]
    small = rng.random() < _SMALL
    while small:
        numbers = {letter: rng.randrange(2, 21) for letter in letters}
        value, positive = numbers[plan[0]], True
        for sign, letter in zip(plan[1::2], plan[2::2], strict=True):
            value = worked_out(sign, value, numbers[letter])
            positive &= value > 0
        if positive:
            return numbers
    return {letter: rng.randrange(low, high) for letter, (low, high) in zip(letters, ranges, strict=True)}


def worked_out(sign: str, a: int, b: int) -> int:
    """The result of one operation of SOLVERS."""
    return {"+": a + b, "-": a - b, "*": a * b}[sign]
