"""The server that a folder is graded through."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from dsv4.verify.own_server import own_server


def served(folder: Path, flags: Sequence[str] = (), *, seconds: float = 300.0) -> AbstractContextManager[str]:
    """`own_server` for grading: temperature counts while the model thinks, and any name of a model is taken."""
    return own_server(folder, ("--free-sampling", "--any-model", *flags), seconds=seconds)
