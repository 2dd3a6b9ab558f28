"""MRCR: the i-th of several answers to one request in a long conversation, word for word (OpenAI; report, figure 9).

Graded as published: 0 unless the answer begins with the given mark, else the ratio of matching characters of Python's
difflib between both texts without the mark. The result is the mean ratio, which the report calls MMR. The lengths of
the published bins are tokens of prompt and answer; here they are counted by the endpoint. Published figures are those
of 8 needles; "MRCR 1M" of table 7 is about the mean over lengths up to 1M, not the figure at 1M (figure 9).

The data is `openai/mrcr` on the hub (MIT; `hf download openai/mrcr --repo-type dataset`). Without it, conversations of
the same form are made here, at the lengths that the user asks for.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher

from dsv4.evals.long_prompts import LENGTHS, label
from dsv4.evals.needle_conversations import needle_conversation
from dsv4.evals.suite import Answer, Ask, Generate, Graded, Item, Published, Row, Score, Suite, modes

NEEDLES = 8
_BINS = LENGTHS[1:]  # each holds what is longer than half of it; the first also what is shorter
_MEAN = "8 needles, mean over all lengths to 1M"
_FIGURE_9 = {"V4-Pro": (90, 85, 94, 90, 92, 82, 66, 59), "V4-Flash": (91, 84, 87, 85, 87, 76, 60, 49)}


def _item(row: Row, ask: Ask) -> Item:
    messages = json.loads(row["prompt"]) if isinstance(row["prompt"], str) else row["prompt"]
    group = f"{row['n_needles']} needles" if "length" not in row else label(row["length"])
    mark = row["random_string_to_prepend"]
    return Item(f"mrcr-{ask.index}", tuple(messages), row["answer"], group=group, data={"mark": mark})


def ratio(answer: str, expected: str, mark: str) -> float:
    """The published grade of an answer, 0 to 1."""
    if not answer.startswith(mark):
        return 0.0
    return SequenceMatcher(None, answer.removeprefix(mark), expected.removeprefix(mark)).ratio()


def _score(item: Item, answer: Answer) -> Score:
    mark = item.data["mark"]
    begun = answer.content.startswith(mark)
    why = "" if begun else f"it does not begin with {mark}"
    return Score(ratio(answer.content, item.target, mark), answer.content[:200], why, {"mark": float(begun)})


def _summary(graded: Sequence[Graded]) -> Mapping[str, float]:
    """The mean ratio of each published bin that has answers, of those whose tokens the server has counted; how many
    are left out stands beside them. Raises ValueError where it has counted none."""
    bins: dict[int, list[float]] = defaultdict(list)
    for each in graded:
        if each.prompt_tokens is not None and each.tokens is not None:
            used = each.prompt_tokens + each.tokens
            bins[next((size for size in _BINS if used <= size), _BINS[-1])].append(each.value)
    if graded and not bins:
        raise ValueError("lengths are of tokens, and no answer came with usage counts of prompt and answer")
    found = {f"to {label(size)}": sum(values) / len(values) for size, values in sorted(bins.items())}
    uncounted = len(graded) - sum(map(len, bins.values()))
    return found | ({"answers of unknown length": float(uncounted)} if uncounted else {})


def _generate(wanted: Generate) -> Iterator[Row]:
    lengths = wanted.lengths or ((700, 1000) if wanted.small else _BINS)
    for length in lengths:
        for number in range(wanted.each(len(lengths), 2 if wanted.small else 20)):
            needles = 2 if wanted.small else NEEDLES
            seed = f"mrcr/{wanted.seed}/{length}/{number}"
            yield {**needle_conversation(length, needles, wanted.count_tokens, seed), "length": length}


SUITE = Suite(
    name="mrcr",
    about="the i-th of several answers to one request in a long conversation, word for word",
    item=_item,
    score=_score,
    summary=_summary,
    generate=_generate,
    by_length=True,
    keep=lambda row: row["n_needles"] == NEEDLES or "length" in row,
    files=("8needle*.parquet", "8needle*.jsonl", "*.parquet", "mrcr*.jsonl"),
    published=(
        *modes("V4-Pro", "report, table 7", 44.7, 83.3, 83.5, setting=_MEAN),
        *modes("V4-Flash", "report, table 7", 37.5, 76.9, 78.7, setting=_MEAN),
        *(
            Published(model, "max", float(value), "report, figure 9", f"8 needles, to {label(size)}")
            for model, values in _FIGURE_9.items()
            for size, value in zip(_BINS, values, strict=True)
        ),
    ),
)
