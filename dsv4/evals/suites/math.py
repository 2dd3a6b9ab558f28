"""MATH: 5,000 problems of competitions in seven subjects and five levels (Hendrycks et al. 2021)."""

from dsv4.evals.answers import BOXED, asked, boxed_math, last_boxed
from dsv4.evals.suite import Ask, HubData, Item, Published, Row, Suite

_BASE = "base model, 4 shots"


def _item(row: Row, ask: Ask) -> Item:
    target = row.get("answer") or last_boxed(row["solution"])
    subject = str(row.get("subject") or row.get("type") or "")
    return Item(f"math-{ask.index}", asked(BOXED.format(question=row["problem"])), target, subject)


SUITE = Suite(
    name="math",
    about="problems of competitions, with the report's prompt for mathematics",
    item=_item,
    score=boxed_math,
    files=("math_test.jsonl", "test.jsonl", "test*.parquet"),
    hub=HubData(
        "DigitalLearningGmbH/MATH-lighteval", "0530c78699ea5e8eb5530600900e1f328b48acad", ("data/test-*.parquet",)
    ),
    published=(
        Published("V4-Pro-Base", "", 64.5, "report, table 1", _BASE),
        Published("V4-Flash-Base", "", 57.4, "report, table 1", _BASE),
    ),
)
