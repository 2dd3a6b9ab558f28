"""IMO-AnswerBench: 400 olympiad problems with short answers (Luong et al. 2025; google-deepmind/superhuman,
imobench/answerbench.csv). The published grader is a model; by rule, only forms that math-verify knows are equal."""

from dsv4.evals.answers import BOXED, PROOF, asked, boxed_math, model_grades
from dsv4.evals.suite import Ask, Item, Mode, Row, Suite, modes

_SETTING = "graded by a model; Pro-Max with the prompt for proofs"


def _item(row: Row, ask: Ask) -> Item:
    prompt = PROOF if ask.mode is Mode.MAX else BOXED
    target = row["Short Answer"].strip().rstrip(".")
    name = str(row.get("Problem ID") or f"imo-{ask.index}")
    data = {"question": row["Problem"].strip()}
    return Item(name, asked(prompt.format(question=data["question"])), target, str(row.get("Category", "")), data=data)


SUITE = Suite(
    name="imo_answerbench",
    about="olympiad problems with short answers; the mode max asks for a proof, as published for Pro-Max",
    item=_item,
    score=boxed_math,
    files=("answerbench*.csv",),
    judge=model_grades("mathematical olympiad problem"),
    published=(
        *modes("V4-Pro", "report, table 7", 35.3, 88.0, 89.8, setting=_SETTING),
        *modes("V4-Flash", "report, table 7", 41.9, 85.1, 88.4, setting=_SETTING),
    ),
)
