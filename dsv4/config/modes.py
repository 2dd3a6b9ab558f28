"""The names of the numerics a model computes in, and of the forms its cached rows take."""

from typing import Literal, get_args

Mode = Literal["fp32", "bf16", "release"]
"""Numerics: floats of 32 or 16 bits, or those of the released models (FP8 and FP4 with rounded activations)."""
ModeChoice = Literal["auto", "fp32", "bf16", "release"]
"""A Mode, or `auto`: that of the folder's weights."""


def check_mode(name: str) -> None:
    """Raise ValueError unless this is one of the names."""
    if name not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {name!r}")


def check_choice(name: str) -> None:
    """Raise ValueError unless this is "auto" or one of the names."""
    if name not in get_args(ModeChoice):
        raise ValueError(f"mode must be one of {', '.join(get_args(ModeChoice))}, got {name!r}")
