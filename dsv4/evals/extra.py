"""What is said where the libraries of the extra `eval` are missing."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs_extra() -> Iterator[None]:
    """Around imports of the extra. Raises ValueError naming it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"dsv4 eval needs {error.name}: pip install 'dsv4[eval]'") from None


def check_extra() -> None:
    """Raise ValueError where the extra is missing; imports nothing, which would take seconds."""
    with needs_extra():
        if importlib.util.find_spec("inspect_ai") is None:
            raise ModuleNotFoundError(name="inspect_ai")
