"""What a user can ask of a machine with several memory nodes (NUMA)."""

from typing import Literal, get_args

NumaChoice = Literal["auto", "off", "interleave"]
"""`dsv4.load` says what each name means."""


def check_numa(choice: str) -> None:
    """Raises ValueError naming the field for another word."""
    if choice not in get_args(NumaChoice):
        raise ValueError(f"numa must be one of {', '.join(get_args(NumaChoice))}, got {choice!r}")
