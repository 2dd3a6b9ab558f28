"""Documents point at things that exist."""

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "models/nano/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
SYMBOL = re.compile(r"`([\w/.]+\.py)(?:::(\w+))?`")
FUNCTION = re.compile(r'"((?:dsv4|recipes|tests)(?:\.\w+)+):(\w+)"')
MODULE = re.compile(r"python3? -m ((?:dsv4|recipes|deploy|benchmarks)(?:\.\w+)*)")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def symbols_of(file: Path) -> set[str]:
    """Top-level names of a module."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_named_files_and_symbols_exist(document: Path) -> None:
    for path, symbol in SYMBOL.findall(document.read_text(encoding="utf-8")):
        if "/" not in path and path != "run.py":
            continue  # a file named beside its folder
        file = ROOT / path
        assert file.is_file(), f"{path} does not exist"
        assert not symbol or symbol in symbols_of(file), f"{path} has no {symbol}"


@pytest.mark.parametrize(
    "document", [*DOCUMENTS, *sorted((ROOT / "recipes").rglob("*.toml"))], ids=lambda d: str(d.relative_to(ROOT))
)
def test_named_functions_and_modules_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for module, function in FUNCTION.findall(text):
        assert function in symbols_of(ROOT / f"{module.replace('.', '/')}.py"), f"{module} has no {function}"
    for module in MODULE.findall(text):
        place = ROOT / module.replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), f"{module} cannot be run"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in LINK.findall(document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_lines_have_at_most_120_columns(document: Path) -> None:
    lines = enumerate(document.read_text(encoding="utf-8").splitlines(), start=1)
    long = [number for number, line in lines if len(line) > 120 and not line.startswith("|") and "://" not in line]
    assert not long


def test_paper_map_is_not_empty() -> None:
    rows = [line for line in (ROOT / "docs" / "paper_map.md").read_text().splitlines() if line.startswith("| ")]
    assert len(rows) > 20
    assert all("tests/" in row and "::" in row for row in rows[1:])


def test_reading_names_a_place_for_twenty_changes() -> None:
    text = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8").partition("## To change X, open Y")[2]
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 20
    assert all(len(row) == 3 and SYMBOL.search(row[1]) for row in rows)
    tests = {path for row in rows for path in re.findall(r"`(tests/[^`]+)`", row[2])}
    assert tests
    assert not [path for path in tests if not (ROOT / path).exists()]


def test_nothing_names_a_package_index() -> None:
    """Set-up uses whatever index pip is configured for; no file may name one."""
    hosts = ("pypi" + ".org", "pythonhosted" + ".org", "download.pytorch" + ".org", "npmjs" + ".org")
    for file in [
        *ROOT.glob("*"),
        *(ROOT / "dsv4").rglob("*.py"),
        *(ROOT / "docs").glob("*"),
        *(ROOT / ".ci").glob("*"),
    ]:
        if file.is_file() and file.suffix not in (".safetensors",):
            text = file.read_text(encoding="utf-8", errors="ignore")
            assert not [host for host in hosts if host in text], file
