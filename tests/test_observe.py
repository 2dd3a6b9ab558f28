"""Text from outside on a terminal: shown, never acted on."""

import io
import json

import pytest

from dsv4.observe import log, printable


@pytest.mark.parametrize(
    ("text", "one_line", "several"),
    [
        ("a\x1b[31mb", "a\u241b[31mb", "a\u241b[31mb"),
        ("\x1b]0;title\x07", "\u241b]0;title\u2407", "\u241b]0;title\u2407"),
        ("a\r\n\tb", "a\u240d\u240a\u2409b", "a\n\tb"),
        ("\x9b31m\x7f\x00", "\ufffd31m\u2421\u2400", "\ufffd31m\u2421\u2400"),
        ("x\u202ey\u2066z\u2028", "x\ufffdy\ufffdz\ufffd", "x\ufffdy\ufffdz\ufffd"),
        ("\ud800", "\ufffd", "\ufffd"),
        ("grün \u4f60\u597d \U0001f600", "grün \u4f60\u597d \U0001f600", "grün \u4f60\u597d \U0001f600"),
    ],
)
def test_what_acts_on_a_terminal_is_shown_instead(text: str, one_line: str, several: str) -> None:
    assert printable(text) == one_line
    assert printable(text, lines=True) == several


def test_no_control_character_is_left() -> None:
    everything = "".join(map(chr, range(0x110000)))
    assert not any(ord(char) < 32 or 0x7F <= ord(char) < 0xA0 for char in printable(everything))
    printable(everything).encode()


def test_a_log_that_cannot_be_written_costs_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("sys.stderr", Full())
    log("event")
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr("sys.stderr", closed)
    log("event")
    with pytest.raises(OSError, match="No space"):
        log("event", Full())


def test_log_lines_act_on_no_terminal() -> None:
    stream = io.StringIO()
    text = "a\x1b]0;title\x07\u009b31m\x7f\u202e\u2028\ud83d"
    log("event", stream, name=text, long="x" * 100_000)
    line = stream.getvalue()
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert json.loads(line)["name"] == text
    assert len(line) < 25_000
