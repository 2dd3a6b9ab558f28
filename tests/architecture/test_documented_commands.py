"""Every `dsv4 ...` of README and docs has verbs, flags and values that exist."""

import re
import shlex
from collections.abc import Iterator

import pytest
from cyclopts import CycloptsError

from dsv4.cli.__main__ import make_app
from tests.architecture.test_docs import DOCUMENTS
from tests.conftest import ROOT

FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:python3 run\.py|dsv4) [^`]+)`")
COMMAND = re.compile(r"^(?:\S*\$ )?(?:[A-Z_0-9]+=\S* )*(?:\S*bin/)?dsv4 (?P<rest>.*)$")
# what stands for something else: alternatives, parts left out, names in capitals where a flag wants a number or a name
PATTERN = re.compile(r"[|\[\]<>*{}$]|\.\.\.|--\w+ [A-Z]\b|VERB")


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every whole command of a document."""
    lines = [line for block in FENCED.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *(inline.replace("\n", " ") for inline in INLINE.findall(FENCED.sub("", text)))]:
        match = COMMAND.match(re.split(r"\s#\s|\s{2,}#|\s[|>&]", line.strip())[0])
        if match is not None and not PATTERN.search(match["rest"]):
            yield shlex.split(match["rest"])


FOUND = [
    pytest.param(arguments, id=f"{document.relative_to(ROOT)}: {' '.join(arguments)}"[:90])
    for document in DOCUMENTS
    for arguments in commands(document.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("arguments", FOUND)
def test_a_documented_command_parses(arguments: list[str]) -> None:
    app = make_app(arguments[0])
    try:
        app.parse_args(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        # in prose a verb may stand with a flag alone
        if type(error).__name__ != "MissingArgumentError":
            raise AssertionError(f"dsv4 {' '.join(arguments)}: {error}") from None


def test_many_commands_are_found_and_a_wrong_one_is_noticed() -> None:
    assert len(FOUND) > 100
    for text in ("```\ndsv4 serve nano --no-such-flag 3\n```", "`dsv4 serve --prot 8000`", "`dsv4 sevre nano`"):
        (arguments,) = commands(text)
        with pytest.raises((AssertionError, CycloptsError)):
            test_a_documented_command_parses(arguments)
