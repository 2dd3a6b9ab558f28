"""Checks of flags that several verbs have, before anything is loaded; the messages name the flag as it is typed."""

from pathlib import Path
from typing import Any


def check_sampling(**options: Any) -> dict[str, Any]:
    """The options of an answer as given, None where nothing is said. Raises ValueError for one outside its range."""
    from dsv4.generation import SamplingParams

    for name, value in options.items():
        if value is None:
            continue
        try:
            SamplingParams(**{name: value})
        except ValueError as error:
            raise ValueError(f"--{name.replace('_', '-')}{str(error).removeprefix(name)}") from None
    return options


def at_least(least: int, **flags: int | None) -> None:
    """Raises ValueError for a flag below `least`; None is no value."""
    for name, value in flags.items():
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def writable(flag: str, file: Path | None, suffix: str = "") -> None:
    """Raises ValueError for a file that cannot be written, or has another ending than `suffix`: hours of measuring
    should not be lost to a typing mistake."""
    if file is None:
        return
    if suffix and file.suffix != suffix:
        raise ValueError(f"{flag} writes {suffix[1:].upper()}: the name must end in {suffix}, got {file}")
    if file.is_dir():
        raise ValueError(f"{flag}: {file} is a folder")
    if not file.parent.is_dir():
        raise ValueError(f"{flag}: there is no folder {file.parent}")
