"""GSM8K: 1,319 word problems of arithmetic for schools (Cobbe et al. 2021)."""

from dsv4.evals.answers import BOXED, asked, last_boxed, last_number, same_math
from dsv4.evals.suite import Answer, Ask, HubData, Item, Published, Row, Score, Suite

_BASE = "base model, 8 shots, exact match"


def _item(row: Row, ask: Ask) -> Item:
    target = row["answer"].rpartition("####")[2].strip().replace(",", "")
    return Item(f"gsm8k-{ask.index}", asked(BOXED.format(question=row["question"])), target)


def _score(item: Item, answer: Answer) -> Score:
    found = last_boxed(answer.content)
    why = "" if found else "no box: the last number counts"
    found = found or last_number(answer.content)
    return Score(float(same_math(item.target, found)), found, why)


SUITE = Suite(
    name="gsm8k",
    about="word problems of arithmetic for schools, with the report's prompt for mathematics",
    item=_item,
    score=_score,
    files=("gsm8k_test.jsonl", "test.jsonl", "main/test-*.parquet"),
    hub=HubData("openai/gsm8k", "cc7b047b6e5bb11b4f1af84efc572db110a51b3c", ("main/test-*.parquet",)),
    published=(
        Published("V4-Pro-Base", "", 92.6, "report, table 1", _BASE),
        Published("V4-Flash-Base", "", 90.8, "report, table 1", _BASE),
    ),
)
