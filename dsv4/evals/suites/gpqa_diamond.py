"""GPQA Diamond: 198 questions of graduate level with four choices (Rein et al. 2023)."""

import random

from dsv4.evals.answers import LETTERS, asked, choice_prompt, chosen_letter
from dsv4.evals.suite import Ask, HubData, Item, Row, Suite, modes


def _item(row: Row, ask: Ask) -> Item:
    right = row["Correct Answer"].strip()
    choices = [right, *(row[f"Incorrect Answer {n}"].strip() for n in (1, 2, 3))]
    # the right choice comes first in the data
    random.Random(f"gpqa/{ask.seed}/{ask.index}").shuffle(choices)
    return Item(
        f"gpqa-{row.get('Record ID') or ask.index}",
        asked(choice_prompt(row["Question"], choices)),
        LETTERS[choices.index(right)],
        str(row.get("High-level domain") or ""),
        data={"choices": len(choices)},
    )


SUITE = Suite(
    name="gpqa_diamond",
    about="questions of graduate level with four choices, asked as simple-evals asks them",
    item=_item,
    score=chosen_letter,
    files=("gpqa_diamond.csv",),
    hub=HubData("Idavidrein/gpqa", "main", ("gpqa_diamond.csv",), gated=True),
    samples=8,
    published=(
        *modes("V4-Pro", "report, table 7", 72.9, 89.1, 90.1),
        *modes("V4-Flash", "report, table 7", 71.2, 87.4, 88.1),
    ),
)
