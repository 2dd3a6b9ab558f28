"""The names of devices, as users write them. No torch."""

import re

DEVICES = "cpu, cuda, cuda:N or auto"


def check_device(device: str, name: str = "device") -> None:
    """Raises ValueError unless it is cpu, cuda (the first card), cuda:N or auto (a card where there is one)."""
    if not (device in ("cpu", "cuda", "auto") or re.fullmatch(r"cuda:\d{1,3}", device)):
        raise ValueError(f"{name} must be {DEVICES}, got {device!r}")
