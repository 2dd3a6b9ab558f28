"""Word problems of one to three steps; the thought names each operation and works it out."""

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
WORDS = {"+": "add", "-": "take away", "*": "times"}


def make_problem(rng: random.Random) -> Item:
    """A word problem with names, things and places."""
    text, ranges, plan = rng.choice(TEMPLATES)
    numbers = {letter: rng.randrange(low, high) for letter, (low, high) in zip("abcd", ranges, strict=False)}
    first, second, third = rng.sample(NAMES, 3)
    thing = rng.choice(THINGS)
    question = text.format(n=first, m=second, o=third, t=thing, p=rng.choice(PLACES), **numbers)
    value, lines = numbers[plan[0]], []
    for sign, letter in zip(plan[1::2], plan[2::2], strict=True):
        other = numbers[letter]
        lines += [f"{value} {WORDS[sign]} {other}", *SOLVERS[sign](value, other)]
        value = {"+": value + other, "-": value - other, "*": value * other}[sign]
    last = {"+": "-", "-": "+"}.get(sign)  # the last step taken back
    if last:
        check = [f"{value} {WORDS[last]} {other}", *SOLVERS[last](value, other)]
    else:
        check = [f"{other} times {numbers[plan[0]]}", *steps.multiply(other, numbers[plan[0]])]
    return solved("math", "problem", question, lines, check, value, level=len(plan) // 2 - 1, unit=thing)
