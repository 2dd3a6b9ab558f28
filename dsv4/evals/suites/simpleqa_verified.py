"""SimpleQA Verified: 1,000 short questions of fact (Haas et al. 2025). The published grader is a model; by rule, an
answer is right that has the reference in it."""

import re

from dsv4.evals.answers import asked, model_grades, normalised
from dsv4.evals.suite import Answer, Ask, HubData, Item, Published, Row, Score, Suite, modes

_DECLINED = re.compile(r"\b(?:i (?:do not|don't) know|not sure|cannot answer|did not learn)\b", re.I)


def _item(row: Row, ask: Ask) -> Item:
    name = f"simpleqa-{row.get('original_index', ask.index)}"
    data = {"question": row["problem"]}
    return Item(name, asked(row["problem"]), row["answer"], str(row.get("topic") or ""), data=data)


def _score(item: Item, answer: Answer) -> Score:
    said, reference = normalised(answer.content), normalised(item.target)
    value = bool(reference) and re.search(rf"(?<!\w){re.escape(reference)}(?!\w)", said) is not None
    attempted = float(bool(said) and not _DECLINED.search(answer.content))
    return Score(float(value), answer.content.strip()[:200], figures={"attempted": attempted})


SUITE = Suite(
    name="simpleqa_verified",
    about="short questions of fact",
    item=_item,
    score=_score,
    files=("simpleqa_verified.csv", "simpleqa_verified*.jsonl"),
    hub=HubData("codelion/SimpleQA-Verified", "5a913f57326d89935cbed0ac071494e7e624b876", ("*.csv", "*.parquet")),
    judge=model_grades("short question of fact"),
    published=(
        *modes("V4-Pro", "report, table 7", 45.0, 46.2, 57.9, setting="graded by a model"),
        *modes("V4-Flash", "report, table 7", 23.1, 28.9, 34.1, setting="graded by a model"),
        Published("V4-Pro-Base", "", 55.2, "report, table 1", "base model, 25 shots"),
    ),
)
