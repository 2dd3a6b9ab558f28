"""Sums, differences and products, worked out column by column from the right."""

import random

from recipes.nano.items import steps
from recipes.nano.items.item import Item

FORMS = (
    "What is {}?", "what is {}", "What is {}", "Calculate {}.", "calculate {}", "{}", "{} =", "{} = ?",
    "How much is {}?", "how much is {}", "Compute {}.", "Work out {}.", "Please calculate {}.",
    "Can you tell me what {} is?", "What do you get for {}?", "Find {}.", "what's {}?", "Tell me {}.",
    "Can you do {}?", "could you work out {} for me", "Do you think you could manage {}?", "is {} too hard for you?",
    "If I give you {}, what do you get?",
)  # fmt: skip
SIGNS = {"+": (" + ", "+", " plus "), "-": (" - ", "-", " minus "), "*": (" * ", "*", " times ", " x ")}
SUM_FORMS = ("Add {} and {}.", "add {} and {}", "What is the sum of {} and {}?", "Give me the sum of {} and {}.")
DIFFERENCE_FORMS = (
    "Subtract {1} from {0}.", "subtract {1} from {0}", "What is the difference of {0} and {1}?", "Take {1} from {0}.",
)  # fmt: skip
PRODUCT_FORMS = ("Multiply {} by {}.", "multiply {} by {}", "What is the product of {} and {}?")

_ROUND = 0.1  # of the numbers
_SHORT = 0.3  # of the sums and differences: all numbers have one or two digits, as people often type


def whole(rng: random.Random, most_digits: int) -> int:
    """A number of 1 to most_digits digits, each count as likely as the others; a few are round."""
    digits = rng.randrange(1, most_digits + 1)
    number = rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)
    if digits > 1 and rng.random() < _ROUND:
        unit = 10 ** rng.randrange(1, digits)
        return number // unit * unit
    return number


def solved(
    domain: str,
    task: str,
    question: str,
    thought: list[str],
    check: list[str],
    answer: int,
    *,
    level: int = 0,
    unit: str = "",
) -> Item:
    """An item whose answer is a number; `check` is what the mode Think Max adds after the thought."""
    reply = f"{answer} {unit}." if unit else f"The answer is {answer}."
    text = "\n".join(thought)
    user = {"role": "user", "content": question}
    return Item(
        domain=domain, task=task, answer=answer, verifier="number", level=level,
        messages=(user, {"role": "assistant", "content": reply, "reasoning_content": text}),
        deep="\n".join([text, "check", *check, f"{answer}"]),
    )  # fmt: skip


def expression(rng: random.Random, terms: list[int]) -> str:
    """The terms as a sum with signs, in symbols or in words."""
    words = rng.random() < 0.2
    close = rng.random() < 0.3
    text = str(terms[0])
    for term in terms[1:]:
        forms = SIGNS["-" if term < 0 else "+"]
        text += forms[2 if words else 1 if close else 0] + str(abs(term))
    return text


def _count(rng: random.Random, least: int, most: int) -> int:
    counts = range(least, most + 1)
    return rng.choices(counts, [1 / (n - 1) for n in counts])[0]


def make_sum(rng: random.Random, least: int = 2, most: int = 4) -> Item:
    """A sum of least to most numbers (2 to 4) of up to four digits."""
    digits = rng.choice((1, 1, 2)) if rng.random() < _SHORT else 4
    terms = [whole(rng, digits) for _ in range(_count(rng, least, most))]
    if len(terms) == 2 and rng.random() < 0.25:
        question = rng.choice(SUM_FORMS).format(*terms)
    else:
        question = rng.choice(FORMS).format(expression(rng, terms))
    again = steps.add(terms[::-1])
    return solved("math", "sum", question, steps.add(terms), again, sum(terms), level=len(terms) - 2)


def make_difference(rng: random.Random, least: int = 2, most: int = 4) -> Item:
    """A difference, or a sum with signs, of least to most numbers (2 to 4); the result may be negative."""
    count = _count(rng, least, most)
    digits = rng.choice((1, 2, 2, 3, 3, 4, 4))  # similar lengths, so that borrows are common
    if rng.random() < _SHORT:
        terms = [max(1, whole(rng, rng.choice((1, 2)))) for _ in range(count)]
    else:
        terms = [max(1, whole(rng, digits if rng.random() < 0.7 else 4)) for _ in range(count)]
    signs = [1, *(rng.choice((1, -1)) for _ in terms[1:])]
    if min(signs) > 0:
        signs[rng.randrange(1, count)] = -1
    if count == 2 and terms[0] < terms[1] and rng.random() < 0.6:
        terms.reverse()
    if count > 2 and rng.random() < 0.15 and terms[0]:
        signs[0] = -1
    terms = [sign * term for sign, term in zip(signs, terms, strict=True)]
    if count == 2 and rng.random() < 0.2:
        question = rng.choice(DIFFERENCE_FORMS).format(terms[0], -terms[1])
    else:
        question = rng.choice(FORMS).format(expression(rng, terms))
    if count == 2:
        plus, minus = max(terms), -min(terms)
        back = steps.add((abs(plus - minus), min(plus, minus)))  # the smaller side added again gives the larger one
    else:
        back = steps.total((sum(terms), -terms[-1]))  # what was there before the last term
    return solved("math", "difference", question, steps.total(terms), back, sum(terms), level=count - 2)


def make_product(rng: random.Random) -> Item:
    """A product of two numbers of one or two digits."""
    a, b = (rng.randrange(2, 10) if rng.random() < 0.3 else rng.randrange(10, 100) for _ in range(2))
    if rng.random() < 0.2:
        question = rng.choice(PRODUCT_FORMS).format(a, b)
    else:
        question = rng.choice(FORMS).format(f"{a}{rng.choice(SIGNS['*'])}{b}")
    again = steps.multiply(b, a)
    return solved("math", "product", question, steps.multiply(a, b), again, a * b, level=len(f"{a}{b}") - 2)
