"""State tracking: the order of five things after up to 16 moves (words over the symmetric group S5).

The thought writes each move and the order after it; Think Max writes the order before it too. The last move keeps the
full stop that the question has behind it, so that its end is near when the thought has to end: without it, long
thoughts went on with moves that nobody asked for. Without a thought the answer is a composition of permutations, which
no model of a fixed depth reads off at once.
"""

import random
from collections.abc import Sequence

from recipes.nano.items.item import Item

LABELS = "abcdefghijklmnop"
START = "12345"
THINGS = ("cups", "cards", "balls", "boxes", "books", "coins", "cats", "lamps", "keys", "shoes")
ROWS = (
    "Five {} stand in the order 1 2 3 4 5.", "There are five {} in a row: 1 2 3 4 5.", "I have {} 1 2 3 4 5 in a row.",
    "The {} are in the order 1 2 3 4 5.", "Take five {}, 1 2 3 4 5.", "We start with {} 1 2 3 4 5.",
)  # fmt: skip
SWAPS = (
    "Swap these places:{}.", "Swap places in this order:{}.", "I swap two places at a time:{}.", "Swaps:{}.",
    "Now swap the places:{}.",
)  # fmt: skip
QUESTIONS = ("What is the order now?", "Which order do they have?", "What order do we get?", "The order now?")
MOVES = {"L": (1, 2, 3, 4, 0), "R": (4, 0, 1, 2, 3), "V": (4, 3, 2, 1, 0), "S": (1, 0, 2, 3, 4), "E": (0, 1, 2, 4, 3)}
LEGEND = "L: first to the end, R: last to the front, V: reverse, S: swap the first two, E: swap the last two."


def apply(order: str, places: Sequence[int]) -> str:
    """The order after a move; places[i] is the old place of what comes to place i, from 0."""
    return "".join(order[p] for p in places)


def _item(task: str, question: str, moves: list[tuple[str, Sequence[int]]]) -> Item:
    order, short, long = START, START, START
    for i, (name, places) in enumerate(moves):
        before, order = order, apply(order, places)
        move = LABELS[i] + name + "." * (i == len(moves) - 1)
        short += f" {move}:{order}"
        long += f" {move} {before}:{order}"
    answer = [int(thing) for thing in order]
    reply = {"role": "assistant", "content": " ".join(order) + ".", "reasoning_content": short}
    user = {"role": "user", "content": question}
    level = (len(moves) - 1) // 4
    return Item("state", task, (user, reply), answer, "order", deep=long, level=level)


def make_swaps(rng: random.Random, least: int = 6, most: int = 16) -> Item:
    """Swaps of two of five places, given as pairs of digits; least to most of them, at most 16."""
    moves = []
    for _ in range(rng.randrange(least, most + 1)):
        i, j = sorted(rng.sample(range(5), 2))
        places = list(range(5))
        places[i], places[j] = j, i
        moves.append((f"{i + 1}{j + 1}", places))
    pairs = "".join(f" {label}{name}" for label, (name, _) in zip(LABELS, moves, strict=False))
    row = rng.choice(ROWS).format(rng.choice(THINGS))
    question = f"{row} {rng.choice(SWAPS).format(pairs)} {rng.choice(QUESTIONS)}"
    return _item("swaps", question, moves)


def make_moves(rng: random.Random, least: int = 6, most: int = 16) -> Item:
    """Named moves of five things, explained before; least to most of them, at most 16."""
    names = rng.choices(list(MOVES), (3, 3, 2, 4, 4), k=rng.randrange(least, most + 1))
    moves = [(f" {name}", MOVES[name]) for name in names]
    listed = "".join(f" {label} {name}" for label, name in zip(LABELS, names, strict=False))
    row = rng.choice(ROWS).format(rng.choice(THINGS))
    lead = rng.choice(("Moves:", "Do these moves:", "I do:", "Now move:"))
    return _item("moves", f"{row} {LEGEND} {lead}{listed}. {rng.choice(QUESTIONS)}", moves)
