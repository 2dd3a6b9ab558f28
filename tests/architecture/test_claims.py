"""Every figure of the README's table of measurements is in docs/claims.md, with its command."""

import re

from dsv4.cli.__main__ import VERBS
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
CLAIMS = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?")


def rows_of(title: str) -> list[str]:
    """The rows of the table under a heading of the page of claims."""
    part = CLAIMS.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return [row for row in part.splitlines() if row.startswith("| ") and not row.startswith("| what")]


ROWS, OTHERS = rows_of("Speed"), rows_of("Elsewhere in the README")


def measured() -> list[str]:
    """The rows of README tables that compare dsv4 with something, without links."""
    part = README.partition("## What it does better")[2].partition("\n## ")[0]
    rows = [line for line in part.splitlines() if line.startswith("|")][2:]
    return [re.sub(r"\[[^]]*\]\([^)]*\)", "", row) for row in rows]


def test_every_figure_of_the_readmes_table_is_a_claim() -> None:
    claimed = set(NUMBER.findall(" ".join(ROWS)))
    rows = measured()
    assert len(rows) >= 8
    for row in rows:
        assert NUMBER.findall(row)
        assert [number for number in NUMBER.findall(row) if number not in claimed] == [], row


def test_every_claim_has_a_command_that_exists_a_machine_and_a_date() -> None:
    assert ROWS
    for row in ROWS:
        _, _, _, command, where, _ = (cell.strip() for cell in row.split("|"))
        (script,) = re.findall(r"`(benchmarks/\w+\.py)`", command)
        assert (ROOT / script).is_file()
        assert re.fullmatch(r"\w+, 20\d\d-\d\d-\d\d", where)


def test_the_claims_are_figures_of_the_page_of_measurements() -> None:
    speed = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    for row in ROWS:
        figures = NUMBER.findall(row.split("|")[2])
        assert [
            number for number in figures if not re.search(rf"(?<![\d.]){re.escape(number)}(?![\d])", speed)
        ] == [], row


def test_the_other_claims_are_in_the_readme_and_on_the_page_they_name() -> None:
    verbs = " ".join([*VERBS, "run.py"])
    assert OTHERS
    for row in OTHERS:
        _, what, figures, command, page, _ = (cell.strip() for cell in row.split("|"))
        (named,) = re.findall(r"\]\(([^)]+)\)", page)
        text = (ROOT / "docs" / named).read_text(encoding="utf-8")
        for number in NUMBER.findall(figures):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d])", README), row
        # a rounded figure or a difference stands there as what it was made of
        sources = [number for cell in (what, figures, command) for number in NUMBER.findall(cell)]
        assert any(re.search(rf"(?<![\d.]){re.escape(number)}(?![\d])", text) for number in sources), row
        (verb,) = re.findall(r"`(?:dsv4 )?([\w.]+)", command)[:1]
        assert verb in verbs, row
