"""A needle in a haystack: one fact in a long text, by the length of the text and the depth of the fact in it.

The classical test, with a fact that nothing else tells: a number of seven digits. The answer is right if it has the
number. The figures of lengths and depths are the cells of the report's heat map.
"""

import random
from collections.abc import Iterator, Mapping, Sequence

from dsv4.evals.answers import asked
from dsv4.evals.long_prompts import LENGTHS, Count, fit, label, sentences
from dsv4.evals.statistics import grouped, mean_value
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
    lengths = grouped(graded, lambda one: one.data["length"])
    depths = grouped(graded, lambda one: one.data["depth"])
    return {
        **{f"length {label(length)}": mean_value(lengths[length]) for length in sorted(lengths)},
        **{f"depth {depth} %": mean_value(depths[depth]) for depth in sorted(depths)},
    }


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
                yield _row(length, depth, chance, wanted.count_tokens)


def _row(length: int, depth: int, chance: random.Random, count: Count) -> Row:
    place, code, seed = pair(chance), number(chance), chance.randrange(2**32)
    prompt = fit(lambda size: _prompt(size, depth, place, code, seed), str, length, count)
    return {"prompt": prompt, "answer": code, "length": length, "depth": depth}


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
