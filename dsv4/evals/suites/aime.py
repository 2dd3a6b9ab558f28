"""AIME: 30 problems a year whose answers are integers from 0 to 999 (Mathematical Association of America)."""

from dsv4.evals.answers import BOXED, asked, boxed_math
from dsv4.evals.suite import Ask, HubData, Item, Row, Suite


def _item(row: Row, ask: Ask) -> Item:
    fields = {name.lower(): value for name, value in row.items()}  # collections of different years differ in case
    target = str(fields["answer"]).strip().lstrip("0") or "0"
    return Item(f"aime-{fields.get('id', ask.index)}", asked(BOXED.format(question=fields["problem"])), target)


SUITE = Suite(
    name="aime",
    about="problems of the AIME with integers as answers, with the report's prompt for mathematics",
    item=_item,
    score=boxed_math,
    files=("aime*.jsonl", "test*.jsonl", "*.parquet"),
    hub=HubData("math-ai/aime25", "563bb8404243c5f09de6ec262f2db674fe5bce9b", ("test.jsonl",)),
    samples=8,  # 30 items: with one answer each the standard error is above 5 points
)
