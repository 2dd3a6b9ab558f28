"""The letters of tensors' axes mean what docs/letters.md lists: one thing each, and named exceptions."""

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "letters.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if re.match(r"\| \w \|", line)]
GENERAL = {row[0]: row[1] for row in ROWS if len(row) == 3}
EXCEPTIONS = {
    (row[0], row[1], place.strip().strip("`")) for row in ROWS if len(row) == 4 for place in row[2].split(",")
}
FILES = sorted(
    file
    for part in ("model", "kernels", "cache", "engine", "training", "distributed")
    for file in (ROOT / "dsv4" / part).rglob("*.py")
)


def legend_of(file: Path) -> list[tuple[str, str]]:
    """Letters and meanings of a file's legend, without what stands in parentheses; empty if it has none."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    found = re.search(r"^Legend: (.*?)\.(?:\s|$)", text, re.DOTALL | re.MULTILINE)
    if not found:
        return []
    clauses = re.sub(r"(?<=[a-z]) \([^)]*\)", "", " ".join(found[1].split()))
    return re.findall(r"(?:^|, )(\w) ([^,]+)", clauses)


def place_of(file: Path) -> list[str]:
    """The folders and the file itself, as docs/letters.md names them."""
    name = file.relative_to(ROOT)
    return [str(name), *(str(folder) for folder in name.parents)]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_legend_gives_letters_their_one_meaning(file: Path) -> None:
    for letter, meaning in legend_of(file):
        excepted = [place for place in place_of(file) if (letter, meaning, place) in EXCEPTIONS]
        assert GENERAL.get(letter) == meaning or excepted, f"{letter} is {meaning!r} in no row of docs/letters.md"


def test_every_row_is_used() -> None:
    used = {(letter, meaning, place) for f in FILES for letter, meaning in legend_of(f) for place in place_of(f)}
    assert used >= EXCEPTIONS, EXCEPTIONS - used
    assert {row[:2] for row in used} >= set(GENERAL.items())
    assert len(GENERAL) > 20
    assert len(used) > 100


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_every_axis_has_a_letter(file: Path) -> None:
    names = {node.id for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Name)}
    letters = {letter for name in names for suffix in re.findall(r"^[a-z]\w*_([A-Z]+)$", name) for letter in suffix}
    assert letters <= set(GENERAL) | {row[0] for row in EXCEPTIONS}
