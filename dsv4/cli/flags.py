"""Checks of flags that several commands share, before the model is loaded. The messages name the flag as typed."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# in a server a prompt may double the time between the tokens of other answers (`slowdown` of dsv4.engine.Engine)
SERVER_SLOWDOWN = 2.0


def check_sampling(**options: Any) -> dict[str, Any]:
    """`options`, the sampling options of an answer; None = not given. Raises ValueError for one outside its range."""
    from dsv4.generation import SamplingParams

    for name, value in options.items():
        if value is None:
            continue
        try:
            SamplingParams(**{name: value})
        except ValueError as error:
            raise ValueError(f"--{name.replace('_', '-')}{str(error).removeprefix(name)}") from None
    return options


def device_change(field: str, device: str | None) -> list[str]:
    """--device as a change of a recipe's field, in the form of --set. Raises ValueError for a name of no device."""
    from dsv4.config.device import check_device

    if device is None:
        return []
    check_device(device, "--device")
    return [f"{field}={device}"]


def at_least(least: int, **flags: int | None) -> None:
    """Raise ValueError for a flag below `least`; None = not given."""
    for name, value in flags.items():
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def check_threads(threads: int | None) -> None:
    """Raise ValueError for a --threads that no machine has."""
    from dsv4.config import device

    device.check_threads(threads, "--threads")


def check_run(threads: int | None, steps: int | None) -> None:
    """Raise ValueError for --threads or --steps outside their ranges."""
    at_least(1, steps=steps)
    check_threads(threads)


def step_limit(slowdown: float | None, default: float) -> float | None:
    """The `slowdown` of an engine, None = no limit. slowdown: --slowdown, None = not given. Raises ValueError."""
    chosen = default if slowdown is None else slowdown
    if not (chosen == 0 or chosen > 1):
        raise ValueError(f"--slowdown must be more than 1, or 0 for no limit, got {chosen:g}")
    return chosen or None


@contextmanager
def naming_arguments() -> Iterator[None]:
    """While entered, a ValueError that begins with the name of an argument names its flag instead."""
    try:
        yield
    except ValueError as error:
        found = re.match(r"([a-z]\w*)(?= must )", str(error))
        if type(error) is not ValueError or found is None:
            raise
        raise ValueError(f"--{found[0].replace('_', '-')}{str(error)[found.end() :]}") from None


def writable(flag: str, file: Path | None, suffix: str = "") -> None:
    """Raise ValueError for a file that cannot be written or does not end in `suffix`, before hours of measurements that
    could not be saved."""
    if file is None:
        return
    if suffix and file.suffix != suffix:
        raise ValueError(f"{flag} writes {suffix[1:].upper()}: the name must end in {suffix}, got {file}")
    if file.is_dir():
        raise ValueError(f"{flag}: {file} is a folder")
    if not file.parent.is_dir():
        raise ValueError(f"{flag}: there is no folder {file.parent}")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ValueError(f"{flag}: {file} cannot be written: no permission, or the file system is read-only")


def write_files(*files: tuple[Path | None, Callable[[], str]]) -> None:
    """Write texts to files, None = not wanted. All are tried, so that one that cannot be written costs no other; then
    the first OSError is raised. What is no Unicode (half of a surrogate pair, as servers may send) is written as its
    escape, which is JSON too."""
    from dsv4.files import write_whole

    failed: OSError | None = None
    for file, text in files:
        if file is None:
            continue
        data = text().encode("utf-8", "backslashreplace")
        try:
            write_whole(file, lambda out, data=data: out.write(data))
        except OSError as error:
            failed = failed or error
    if failed is not None:
        raise failed


def to_stderr(line: str) -> None:
    """Show a line for the user, beside the output."""
    from dsv4.observe import printable

    print(printable(line), file=sys.stderr, flush=True)
