"""Small talk: held-out wordings with the model's answers, as a page that a person grades."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.nano.grading.dialogue import Turn
from recipes.nano.items.talk import HELD_OUT, answers_of

HEAD = Path(__file__).with_name("sheet.md")


@dataclass(frozen=True, slots=True)
class Wording:
    """What a user says, and what it is about."""

    text: str
    intent: str

    def known(self, answer: str) -> bool:
        """Whether the answer is one of those that the intent has. Others may be right as well: a person says."""
        return answer.strip() in answers_of(self.intent, self.text)


def wordings() -> list[Wording]:
    """The held-out wordings, none of which training has."""
    rows = [json.loads(line) for line in HELD_OUT.read_text(encoding="utf-8").splitlines()]
    return [Wording(row["wording"], row["intent"]) for row in rows]


def page(model: str, asked: Sequence[tuple[Wording, Turn]]) -> str:
    """The sheet in Markdown: a row each, with an empty column for the grade."""
    known = sum(wording.known(turn.content) for wording, turn in asked)
    rows = [
        f"| {number} | {_cell(wording.text)} | {_cell(turn.content)} | {wording.intent} | "
        f"{'yes' if wording.known(turn.content) else ''} |  |"
        for number, (wording, turn) in enumerate(asked, start=1)
    ]
    head = HEAD.read_text(encoding="utf-8").format(model=model, count=len(asked), known=known)
    return head + "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
