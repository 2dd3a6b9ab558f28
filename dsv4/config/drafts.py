"""The ways to draft tokens that a user can name."""

from typing import Literal, get_args

DraftChoice = Literal["auto", "none", "ngram", "head", "both"]
"""How tokens are drafted; `dsv4.load` says what each name means."""
# the most tokens of a looked-up draft: eight rows with the sampled token; nine cost half as much again (docs/speed.md)
LOOKUP = 7
MOST_CHECKED = 32  # looked-up tokens that one step checks, of all its requests together


def drafting(choice: DraftChoice, *, on_card: bool, native: bool) -> tuple[bool, int]:
    """Whether the prediction block or draft head drafts, and the most tokens of a looked-up draft (0: none is looked
    up). Raises ValueError naming the field.

    auto: looked-up drafts on a CPU with the native kernels (native), where they were measured to be faster and change
    no bit; none on a card, and none in plain torch, where the number of rows of a step may change the last bits.
    """
    if choice not in get_args(DraftChoice):
        raise ValueError(f"draft must be one of {', '.join(get_args(DraftChoice))}, got {choice!r}")
    if choice == "auto":
        choice = "ngram" if native and not on_card else "none"
    return choice in ("head", "both"), LOOKUP if choice in ("ngram", "both") else 0
