"""The names of devices and the number of threads, as users write them. No torch."""

import re

DEVICES = "cpu, cuda, cuda:N or auto"
MOST_THREADS = 4096


def check_device(device: str, name: str = "device") -> None:
    """Raises ValueError unless it is cpu, cuda (the first card), cuda:N or auto (a card where there is one)."""
    if not (device in ("cpu", "cuda", "auto") or re.fullmatch(r"cuda:\d{1,3}", device)):
        raise ValueError(f"{name} must be {DEVICES}, got {device!r}")


def check_threads(threads: int | None, name: str = "threads") -> None:
    """Raises ValueError for a number of threads that no machine has: the system would have to start them all. None =
    not given."""
    if threads is not None and not (isinstance(threads, int) and 1 <= threads <= MOST_THREADS):
        raise ValueError(f"{name} must be in [1, {MOST_THREADS}], got {threads!r}")
