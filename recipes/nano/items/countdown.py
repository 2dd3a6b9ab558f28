"""Countdown: reach a target with given numbers, each used once, by + - *. The thought is a search with dead ends.

A branch is one first operation (`3+5=8`), then, on what is left, all operations that stay between 0 and LIMIT, until
one gives the target. The demonstration takes a few wrong branches at random and then a right one; Think Max takes more
branches, none of them twice, and works out the result once more.

A systematic demonstration does not know where the right branch is. It begins with any first operation and takes what
follows in order until one reaches the target. A model that imitates the other form has to find the right branch after
two or three, and writes a wrong result where it has not; one that imitates this form goes on. Think Max has the whole
search and Think High its end, so that both learn one way to go on, for which they have different time.

Before the result stand the operations that led to it, the last one first: each is found by the number that the one
before it needs, and the result is then put together from what is near.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from recipes.nano.items.item import Item

LIMIT = 99
# characters, of about a token each, after which a systematic search tries its last first operation: Think High, Max
LONGEST, DEEPEST = 600, 1_600
_JUMPS = 0.25  # share of first operations after which the next is any other
FORMS = (
    "Use {n} to make {t}.", "Make {t} from {n}.", "Reach {t} with the numbers {n}.", "Combine {n} to get {t}.",
    "Numbers {n}, target {t}.", "Can you make {t} with {n}?", "Find an expression for {t} with {n}.",
    "Get {t} out of {n}.", "Countdown: {n} -> {t}", "Using {n} once each, make {t}.", "How do you get {t} from {n}?",
    "target {t}, numbers {n}",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Term:
    """A value and how it was made; `made` is False for a given number."""

    value: int
    text: str
    made: bool = False

    def inside(self) -> str:
        return f"({self.text})" if self.made else self.text


def combinations(x: Term, y: Term) -> Iterator[tuple[str, Term]]:
    """The operations on two terms: a sum, the difference larger - smaller, a product; none outside 0..LIMIT."""
    if x.value < y.value:
        x, y = y, x
    for sign, value in (("+", x.value + y.value), ("-", x.value - y.value), ("*", x.value * y.value)):
        if 0 <= value <= LIMIT:
            yield f"{x.value}{sign}{y.value}={value}", Term(value, f"{x.inside()}{sign}{y.inside()}", True)


def pairs(terms: Sequence[Term]) -> Iterator[tuple[str, list[Term]]]:
    """Every operation on two of the terms, with the terms left after it, the new one first."""
    for i, x in enumerate(terms):
        for j in range(i + 1, len(terms)):
            rest = [term for k, term in enumerate(terms) if k not in (i, j)]
            for step, made in combinations(x, terms[j]):
                yield step, [made, *rest]


def solutions(terms: Sequence[Term], target: int) -> bool:
    """Whether the terms reach the target."""
    if len(terms) == 1:
        return terms[0].value == target
    return any(solutions(rest, target) for _, rest in pairs(terms))


def solution(rng: random.Random, terms: Sequence[Term], target: int) -> list[tuple[str, list[Term]]]:
    """The operations of one way to the target with what each leaves; the terms must reach it."""
    if len(terms) == 1:
        return []
    good = [(step, rest) for step, rest in pairs(terms) if solutions(rest, target)]
    step, rest = rng.choice(good)
    return [(step, rest), *solution(rng, rest, target)]


def search(
    rng: random.Random, terms: Sequence[Term], target: int, path: Sequence[tuple[str, list[Term]]], wrong: int
) -> list[str]:
    """Lines of a search that takes up to `wrong` dead ends at first, up to one after the first operation, then the
    path."""
    if len(terms) == 2:
        written = []
        for step, made in combinations(*terms):
            written.append(step)
            if made.value == target:
                break
        return [",".join(written)]
    bad = {step: rest for step, rest in pairs(terms) if not solutions(rest, target)}
    lines: list[str] = []
    for step in rng.sample(list(bad), min(wrong, len(bad))):
        lines += [_line(step, bad[step]), *_dead_end(rng, bad[step])]
    step, rest = path[0]
    return [*lines, _line(step, rest), *search(rng, rest, target, path[1:], min(wrong, 1))]


def _line(step: str, rest: Sequence[Term]) -> str:
    return f"{step}:" + " ".join(str(term.value) for term in rest)


def _dead_end(rng: random.Random, terms: Sequence[Term]) -> list[str]:
    if len(terms) == 2:
        return [",".join(step for step, _ in combinations(*terms))]
    step, rest = rng.choice(list(pairs(terms)))
    return [_line(step, rest), *_dead_end(rng, rest)]


Found = tuple[list[str], str]  # operations that reach the target, and their expression


def systematic_search(rng: random.Random, terms: Sequence[Term], target: int) -> tuple[list[list[str]], Found]:
    """First operations with all that can follow each, tried in order, then the next first operation, at times any
    other, up to the one that reaches the target: the lines of each, and what was found. The terms must reach the
    target; a search of more than DEEPEST characters before its last operation is begun again elsewhere. Documents of
    less tokens hold only the shorter ones of Think Max."""
    options = _distinct(terms)
    while True:
        branches, left, at = list[list[str]](), list(range(len(options))), rng.randrange(len(options))
        while left and _characters(branches) <= DEEPEST:
            following = [i for i in left if i >= at] or left
            chosen = rng.choice(left) if branches and rng.random() < _JUMPS else following[0]
            left.remove(chosen)
            step, rest = options[chosen]
            branches.append([_line(step, rest)])
            found = _visit(rest, target, branches[-1])
            if found is not None:
                return branches, ([step, *found[0]], found[1])
            at = chosen


def _end_of(branches: Sequence[list[str]]) -> Sequence[list[str]]:
    """The end of a search from the earliest first operation from which it takes LONGEST characters at most before its
    last one: a later start would show that the right one is often the first."""
    return next(branches[i:] for i in range(len(branches)) if _characters(branches[i:-1]) <= LONGEST)


def _characters(branches: Sequence[list[str]]) -> int:
    return sum(len(line) + 1 for lines in branches for line in lines)


def _distinct(terms: Sequence[Term]) -> list[tuple[str, list[Term]]]:
    """Every operation on two of the terms; equal numbers give equal lines, which are there once."""
    return list({_line(step, rest): (step, rest) for step, rest in pairs(terms)}.values())


def _visit(terms: Sequence[Term], target: int, lines: list[str]) -> Found | None:
    """Try everything that the terms allow, in order, up to the target."""
    if len(terms) == 2:
        written = list[str]()
        for step, made in combinations(*terms):
            written.append(step)
            if made.value == target:
                lines.append(",".join(written))
                return [step], made.text
        lines.append(",".join(written))
        return None
    for step, rest in _distinct(terms):
        lines.append(_line(step, rest))
        found = _visit(rest, target, lines)
        if found is not None:
            return [step, *found[0]], found[1]
    return None


def _make(rng: random.Random, count: int, largest: int, systematic: bool) -> Item:
    while True:
        numbers = [rng.randrange(1, largest + 1) for _ in range(count)]
        terms = [Term(n, str(n)) for n in numbers]
        goal = terms
        while len(goal) > 1:
            options = [rest for _, rest in pairs(goal)]
            if not options:
                break
            goal = rng.choice(options)
        target = goal[0].value
        if len(goal) == 1 and target >= 10 and target not in numbers:
            break
    wrong, more = rng.randrange(4 if count == 3 else 2), rng.randrange(4, 9 if count == 3 else 5)
    path = solution(rng, terms, target)
    steps, made = [step for step, _ in path], path[-1][1][0].text
    thought, deep = (search(rng, terms, target, path, dead_ends) for dead_ends in (wrong, more))
    if systematic:
        branches, (steps, made) = systematic_search(rng, terms, target)
        deep, thought = (list(chain.from_iterable(part)) for part in (branches, _end_of(branches)))
    end = f"{made}={target}"
    back = ",".join(reversed(steps))
    question = rng.choice(FORMS).format(n=rng.choice((" ", ", ")).join(map(str, numbers)), t=target)
    assistant = {"role": "assistant", "content": end, "reasoning_content": "\n".join([*thought, back, end])}
    return Item(
        "search", f"countdown{count}", ({"role": "user", "content": question}, assistant),
        {"numbers": numbers, "target": target}, "expression",
        deep="\n".join([*deep, back, end, "check " + ",".join(steps)]), level=count - 3,
    )  # fmt: skip


def make_countdown3(rng: random.Random, systematic: bool = False) -> Item:
    """Three numbers up to 15."""
    return _make(rng, 3, 15, systematic)


def make_countdown4(rng: random.Random, systematic: bool = False) -> Item:
    """Four numbers up to 12."""
    return _make(rng, 4, 12, systematic)
