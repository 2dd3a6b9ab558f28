"""A needle in a haystack: one fact in a long text, by the length of the text and the depth of the fact in it.

The classical test, with a fact that nothing else tells: a number of seven digits. The answer is right if it has the
number. The figures of lengths and depths are the cells of the report's heat map.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from dsv4.evals.answers import asked
from dsv4.evals.long_prompts import LENGTHS, fit, label, sentences
from dsv4.evals.suite import Answer, Ask, Generate, Graded, Item, Row, Score, Suite
from dsv4.evals.words import number, pair

DEPTHS = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)  # per cent of the text before the fact
_PROMPT = (
    "Read the text and answer the question after it.\n\n{text}\n\n"
    "Question: what is the code of the {place} room? Answer with the code only."
)


def _item(row: Row, ask: Ask) -> Item:
    group = f"{label(row['length'])}, depth {row['depth']} %"
    data = {"length": row["length"], "depth": row["depth"]}
    return Item(f"needle-{ask.index}", asked(row["prompt"]), row["answer"], group=group, data=data)


def _score(item: Item, answer: Answer) -> Score:
    found = item.target in answer.content.replace(",", "").replace(" ", "")
    return Score(float(found), answer.content[:200], "" if found else f"the code is {item.target}")


def _summary(graded: Sequence[Graded]) -> Mapping[str, float]:
    """The mean of each length, and of each depth."""
    by: dict[str, list[float]] = defaultdict(list)
    for each in sorted(graded, key=lambda each: (each.data["length"], each.data["depth"])):
        by[f"length {label(each.data['length'])}"].append(each.value)
        by[f"depth {each.data['depth']} %"].append(each.value)
    return {name: sum(values) / len(values) for name, values in by.items()}


def _prompt(count: int, depth: int, place: str, code: str, seed: int) -> str:
    parts = sentences(count, seed)
    parts.insert(round(count * depth / 100), f"The code of the {place} room is {code}.")
    return _PROMPT.format(text=" ".join(parts), place=place)


def _generate(wanted: Generate) -> Iterator[Row]:
    lengths = wanted.lengths or ((150, 300) if wanted.small else LENGTHS)
    depths = (0, 50, 100) if wanted.small else DEPTHS
    for length in lengths:
        for depth in depths:
            for again in range(wanted.each(len(lengths) * len(depths), 1)):
                chance = random.Random(f"needle/{wanted.seed}/{length}/{depth}/{again}")
                place, code, seed = pair(chance), number(chance), chance.randrange(2**32)

                def build(n: int, depth: int = depth, place: str = place, code: str = code, seed: int = seed) -> str:
                    return _prompt(n, depth, place, code, seed)

                prompt = fit(build, str, length, wanted.count_tokens)
                yield {"prompt": prompt, "answer": code, "length": length, "depth": depth}


SUITE = Suite(
    name="needle",
    about="one fact in a long text, by length and depth",
    item=_item,
    score=_score,
    summary=_summary,
    generate=_generate,
    by_length=True,
    axes=("length", "depth"),
)
