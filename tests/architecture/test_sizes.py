"""Files stay under 500 lines, functions under 60, and nothing hides in module state."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

FILES = [
    *sorted(path for folder in ("dsv4", "tests", "recipes", "benchmarks") for path in (ROOT / folder).rglob("*.py")),
    ROOT / "run.py",
]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_file_and_function_sizes(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") < 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines < 60, f"{node.name} has {lines} lines"
        assert not isinstance(node, ast.Global), f"line {node.lineno}: no global statements"


def test_class_names_have_one_meaning() -> None:
    """But for dsv4/verify: a program of its own, which looks at servers from outside."""
    found: dict[str, list[str]] = {}
    for file in sorted({*(ROOT / "dsv4").rglob("*.py")} - {*(ROOT / "dsv4" / "verify").rglob("*.py")}):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(str(file.relative_to(ROOT)))
    assert not {name: files for name, files in found.items() if len(files) > 1}


def test_no_drawer_of_odds_and_ends() -> None:
    assert not [f for f in FILES if f.stem in ("utils", "util", "helpers", "misc", "common")]


@pytest.mark.parametrize("file", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda f: f.stem)
def test_every_test_file_has_tests(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert any(
        isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and n.name.startswith("test_") for n in ast.walk(tree)
    )


def test_no_two_test_files_share_a_name() -> None:
    """pytest imports them by their names alone, and refuses to collect the second."""
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_every_kernel_has_a_reference() -> None:
    folders = [f for f in (ROOT / "dsv4" / "kernels").iterdir() if f.is_dir() and (f / "__init__.py").exists()]
    # native is how the others are built; the reference of step is the model itself
    without = {f.name for f in folders if not (f / "reference.py").exists()}
    assert without <= {"native", "step"}
