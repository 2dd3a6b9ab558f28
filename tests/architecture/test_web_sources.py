"""The sources of the pages keep the rules of the house: small files, one place for each border, no text as code."""

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCES = ROOT / "web" / "src"
FILES = sorted(file for file in SOURCES.rglob("*.ts*") if file.name != "styles.d.ts")
STYLES = sorted(SOURCES.rglob("*.css"))
# what only one folder may use: other folders call that folder
BORDERS = {
    r"\bfetch\(": ("api", "tools"),  # tools: other servers than ours, by MCP
    r"\b(localStorage|sessionStorage|indexedDB)\b": ("store",),
}
TEXT_AS_CODE = r"dangerouslySetInnerHTML|\.(inner|outer)HTML\b|insertAdjacentHTML|document\.write\b"


def place(file: Path) -> str:
    return file.relative_to(SOURCES).as_posix()


@pytest.mark.parametrize("file", [*FILES, *STYLES], ids=place)
def test_sizes(file: Path) -> None:
    assert file.read_text(encoding="utf-8").count("\n") < 500


@pytest.mark.parametrize("file", FILES, ids=place)
def test_borders(file: Path) -> None:
    if ".test." in file.name:
        return
    code = re.sub(r"^\s*(//|\*|/\*).*$", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for pattern, folders in BORDERS.items():
        assert place(file).split("/")[0] in folders or not re.search(pattern, code), pattern
    assert not re.search(TEXT_AS_CODE, code)
    assert not re.search(r"""(src|href|url\(|from|import)\s*=?\(?\s*["']https?://""", code)
