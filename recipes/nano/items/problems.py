"""Word problems of one to three steps; the thought names the operations and works them out."""

import random
from collections.abc import Callable

from recipes.nano.items import steps
from recipes.nano.items.arithmetic import solved
from recipes.nano.items.item import Item

NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Ida", "Jonas", "Kate", "Leo", "Maria", "Noah",
    "Olga", "Paul", "Rosa", "Sam", "Tina", "Victor", "Wendy", "Yusuf", "Zoe", "Omar", "Lucy", "Mark", "Nina", "Oscar",
)  # fmt: skip
THINGS = (
    "apples", "books", "cards", "coins", "stamps", "balls", "cups", "pens", "eggs", "shells", "stones", "photos",
    "nuts", "keys", "boxes", "lamps",
)  # fmt: skip
PLACES = ("shop", "school", "library", "market", "farm", "museum", "station", "garden")
# the text, the ranges of its numbers, and the plan: the first number, then operations from left to right
Template = tuple[str, tuple[tuple[int, int], ...], str]
TEMPLATES: tuple[Template, ...] = (
    ("{n} has {a} {t}. {m} gives {n} {b} more. How many {t} does {n} have now?", ((2, 999), (2, 999)), "a+b"),
    ("{n} has {a} {t} and buys {b} more. How many {t} does {n} have?", ((2, 999), (2, 999)), "a+b"),
    ("There are {a} {t} in the {p}. {n} brings {b}. How many {t} are there now?", ((10, 2000), (2, 999)), "a+b"),
    ("{n} has {a} {t} and {m} has {b}. How many {t} do they have together?", ((2, 999), (2, 999)), "a+b"),
    ("{n} has {a} {t}. {n} gives {b} to {m}. How many {t} are left?", ((100, 999), (2, 100)), "a-b"),
    ("A {p} has {a} {t} and sells {b}. How many {t} remain?", ((500, 2000), (2, 500)), "a-b"),
    ("{n} has {a} {t}, {m} has {b}. How many more {t} does {n} have?", ((100, 999), (2, 100)), "a-b"),
    ("{n} wants {a} {t} and has {b}. How many {t} are missing?", ((100, 999), (2, 100)), "a-b"),
    ("{n} fills {a} bags with {b} {t} each. How many {t} are that?", ((2, 20), (2, 60)), "a*b"),
    ("Each of {a} children has {b} {t}. How many {t} do they have in all?", ((2, 30), (2, 30)), "a*b"),
    ("A row has {a} {t}. How many {t} are in {b} rows?", ((2, 60), (2, 20)), "a*b"),
    ("{n} has {a} {t}, finds {b} and loses {c}. How many {t} does {n} have?", ((50, 900), (2, 99), (2, 50)), "a+b-c"),
    ("{a} {t} lie in the {p}. {b} are sold and {c} come. How many are there?", ((99, 900), (2, 99), (2, 99)), "a-b+c"),
    ("{n} has {a} boxes of {b} {t} and {c} more {t}. How many {t} is that?", ((2, 12), (2, 50), (2, 99)), "a*b+c"),
    ("{n} packs {a} boxes of {b} {t} and sells {c} {t}. How many are left?", ((3, 12), (10, 50), (2, 30)), "a*b-c"),
    ("{n} has {a} {t}, {m} has {b}, {o} has {c}. How many {t} in all?", ((2, 999), (2, 999), (2, 999)), "a+b+c"),
    ("{n} finds {a} {t} a day for {b} days and loses {c}. How many {t} remain?", ((10, 60), (3, 12), (2, 30)), "a*b-c"),
    ("{n} has {a} {t}. {m} has {b} more than {n}. How many {t} do they have together?", ((2, 500), (2, 300)), "a+b+a"),
    ("{n} has {a} {t}. {m} has {b} times as many. How many {t} do both have?", ((2, 90), (2, 9)), "a*b+a"),
    ("A {p} has {a} {t}, sells {b} on Monday and {c} on Tuesday and gets {d} new ones. How many {t} are there?",
     ((500, 2000), (2, 250), (2, 250), (2, 250)), "a-b-c+d"),
    ("{n} buys {a} bags of {b} {t}, gets {c} from {m} and eats {d}. How many {t} are left?",
     ((3, 12), (10, 50), (2, 99), (2, 30)), "a*b+c-d"),
)  # fmt: skip
SOLVERS: dict[str, Callable[[int, int], list[str]]] = {
    "+": lambda a, b: steps.add((a, b)), "-": steps.subtract, "*": steps.multiply,
}  # fmt: skip
BACK = {"+": "-", "-": "+"}


def make_problem(rng: random.Random) -> Item:
    """A word problem with names, things and places."""
    text, ranges, plan = rng.choice(TEMPLATES)
    numbers = {letter: rng.randrange(low, high) for letter, (low, high) in zip("abcd", ranges, strict=False)}
    first, second, third = rng.sample(NAMES, 3)
    thing = rng.choice(THINGS)
    question = text.format(n=first, m=second, o=third, t=thing, p=rng.choice(PLACES), **numbers)
    operands, signs = [numbers[letter] for letter in plan[::2]], plan[1::2]
    # all operations at once, while the text is near; then one after another
    lines = ["".join(str(numbers.get(c, c)) for c in plan)] if len(signs) > 1 else []
    value = operands[0]
    for sign, other in zip(signs, operands[1:], strict=True):
        before, value = value, {"+": value + other, "-": value - other, "*": value * other}[sign]
        lines += SOLVERS[sign](before, other)
    check = SOLVERS[BACK[sign]](value, other) if sign in BACK else steps.multiply(other, before)
    return solved("math", "problem", question, lines, check, value, level=len(signs) - 1, unit=thing)
