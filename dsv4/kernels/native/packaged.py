"""The compiled kernels of the package dsv4-kernels, where it is installed. They spare users a compiler."""

from importlib.util import find_spec
from pathlib import Path

PACKAGE = "dsv4_kernels"  # holds SOURCES and a library for each instruction set; deploy/build_wheels.py fills it
SOURCES = "sources.sha256"


def library_name(isa: str) -> str:
    return f"dsv4-{isa}.so"


def packaged_folder() -> Path | None:
    """Where dsv4-kernels is installed, or None."""
    spec = find_spec(PACKAGE)
    places = None if spec is None else spec.submodule_search_locations
    return Path(places[0]) if places else None


def packaged_library(isa: str, sources: str) -> tuple[Path | None, str]:
    """The installed library for `isa` that was compiled from `sources` (a digest). Else None and why it is not used;
    the reason is empty if the package is not installed."""
    folder = packaged_folder()
    if folder is None:
        return None, ""
    digest, library = folder / SOURCES, folder / library_name(isa)
    if not digest.is_file() or digest.read_text(encoding="utf-8").strip() != sources:
        return None, "the installed dsv4-kernels was compiled from other sources: install the version of this dsv4"
    if not library.is_file():
        return None, f"the installed dsv4-kernels has no library for {isa}"
    return library, ""
