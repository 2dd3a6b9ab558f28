"""Humanity's Last Exam: questions of experts (Phan et al. 2025), those without pictures. The published grader is a
model; by rule, an answer counts that is the same letter, the same text or an equal expression."""

import re

from dsv4.evals.answers import model_grades, same_math, same_text
from dsv4.evals.suite import Answer, Ask, HubData, Item, Row, Score, Suite, modes

_SYSTEM = (
    "Your response should be in the following format:\n"
    "Explanation: {your explanation for your answer choice}\n"
    "Answer: {your chosen answer}\n"
    "Confidence: {your confidence score between 0% and 100% for your answer}"
)
_FIELD = re.compile(r"^[ \t*]*(?:exact )?answer[ \t*]*:[ \t*]*(.+?)[ \t*]*$", re.I | re.M)
_CONFIDENCE = re.compile(r"confidence[ \t*]*:[ \t*]*(\d{1,3})(?:\.\d+)?\s*%?", re.I)


def _item(row: Row, ask: Ask) -> Item:
    messages = ({"role": "system", "content": _SYSTEM}, {"role": "user", "content": row["question"]})
    data = {"question": row["question"], "choice": row.get("answer_type") == "multipleChoice"}
    name = f"hle-{row.get('id') or ask.index}"
    return Item(name, messages, str(row["answer"]), str(row.get("category") or ""), data=data)


def _score(item: Item, answer: Answer) -> Score:
    fields = _FIELD.findall(answer.content)
    found = fields[-1].strip() if fields else ""
    if item.data["choice"]:
        letter = re.match(r"\(?([A-Za-z])\b", found)
        value = letter is not None and letter[1].upper() == item.target.strip().upper()
    else:
        value = same_text(item.target, found) or same_math(item.target, found)
    confidence = _CONFIDENCE.search(answer.content)
    figures = {}
    if confidence is not None:
        figures["squared error of the confidence"] = (min(100, int(confidence[1])) / 100 - value) ** 2
    return Score(float(value), found, "" if fields else "no line `Answer:`", figures)


SUITE = Suite(
    name="hle",
    about="Humanity's Last Exam, questions without pictures",
    item=_item,
    score=_score,
    keep=lambda row: not row.get("image"),
    files=("hle*.jsonl", "test*.parquet"),
    hub=HubData("cais/hle", "5a81a4c7271a2a2a312b9a690f0c2fde837e4c29", ("data/test-*.parquet",), gated=True),
    judge=model_grades("question of an exam"),
    published=(
        *modes("V4-Pro", "report, table 7", 7.7, 34.5, 37.7, setting="graded by a model"),
        *modes("V4-Flash", "report, table 7", 8.1, 29.4, 34.8, setting="graded by a model"),
    ),
)
