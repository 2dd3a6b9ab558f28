"""The Python examples of README and docs run as they stand, on the bundled model."""

import re

import pytest

from tests.conftest import ROOT

BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_python_example_runs(block: str) -> None:
    exec(compile(block, "example", "exec"), {"__name__": "example"})


def test_the_readme_has_an_example() -> None:
    assert len(BLOCKS) >= 1
