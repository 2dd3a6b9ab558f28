"""Streaming equals the batch parser, however the text is split."""

import time
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sample_completions import BROKEN, CALL_F, WELL_FORMED, WHOLE, block, lenient

from dsv4.encoding import (
    V4,
    ContentDelta,
    ParsedCompletion,
    ReasoningDelta,
    StreamParser,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    parse_completion,
)

PIECES = [
    "a", "<", ">", "/", '"', "\n", "\n\n", " ", "｜", "热", "💡", "name", '\\', "</", "<｜", "｜DSML｜",
    V4.eos, V4.bos, "<think>", "</think>", "<｜DSML｜", "</｜DSML｜", "/｜DSML｜parameter", ">\n",
    "\n\n<｜DSML｜tool_calls>\n", "</｜DSML｜tool_calls>",
    '<｜DSML｜invoke name="f">\n', "</｜DSML｜invoke>\n",
    '<｜DSML｜parameter name="x" string="true">', '<｜DSML｜parameter name="y" string="false">',
    "</｜DSML｜parameter>\n", "</｜DSML｜param", "\n\n<｜DSML｜tool", "</thi", "<｜end▁of",
    CALL_F, block(CALL_F),
]  # fmt: skip

TEXTS = st.lists(st.sampled_from(PIECES), max_size=16).map("".join)
MODES = st.sampled_from(["chat", "thinking"])
# texts that are inside a call from the start reach the deeper states far more often
OPENINGS = st.sampled_from(
    [
        "",
        "\n\n<｜DSML｜tool_calls>\n",
        '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n',
        '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="k" string="true">',
    ]
)


def stream(pieces: list[str], mode: str) -> ParsedCompletion:
    parser, result = StreamParser(mode), ParsedCompletion()
    for piece in pieces:
        for delta in parser.feed(piece):
            result.add(delta)
    for delta in parser.finish():
        result.add(delta)
    result.ended, result.malformed = parser.ended, parser.malformed
    return result


@pytest.mark.parametrize(("text", "mode"), WELL_FORMED + BROKEN)
def test_every_split_point(text: str, mode: str) -> None:
    batch = parse_completion(text, mode)
    assert batch == lenient(text, mode)
    assert stream(list(text), mode) == batch
    for at in range(len(text) + 1):
        assert stream([text[:at], text[at:]], mode) == batch


@pytest.mark.parametrize(("text", "mode"), WELL_FORMED + BROKEN)
def test_every_prefix_streams_as_it_parses(text: str, mode: str) -> None:
    for end in range(len(text)):
        prefix = text[:end]
        assert stream(list(prefix), mode) == parse_completion(prefix, mode) == lenient(prefix, mode)


@settings(max_examples=600, deadline=None)
@given(opening=OPENINGS, text=TEXTS, mode=MODES, data=st.data())
def test_random_text_and_splits(opening: str, text: str, mode: str, data: st.DataObject) -> None:
    text = opening + text
    batch = parse_completion(text, mode)
    assert batch == lenient(text, mode)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    edges = [0, *cuts, len(text)]
    pieces = [text[start:end] for start, end in pairwise(edges)]
    assert stream(pieces, mode) == batch
    assert stream(list(text), mode) == batch


@settings(max_examples=200, deadline=None)
@given(text=st.text(), mode=MODES)
def test_arbitrary_unicode_is_passed_through(text: str, mode: str) -> None:
    assume(not any(marker in text for marker in WHOLE))
    text += "."  # what looks like the start of a marker is held back only at the end
    result = stream(list(text), mode)
    assert result.content + result.reasoning_content == text


def test_deltas_arrive_as_early_as_they_are_certain() -> None:
    parser = StreamParser("thinking")
    assert parser.feed("why") == [ReasoningDelta("why")]
    assert parser.feed("</th") == []
    assert parser.feed("ink>yes\n\n") == [ContentDelta("yes")]
    assert parser.feed('<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n') == []
    start = parser.feed('<｜DSML｜parameter name="x" string="true">a')
    assert start == [ToolCallStart(0, "f"), ToolCallArguments(0, '{"x": "a')]
    assert parser.feed('b"') == [ToolCallArguments(0, 'b\\"')]
    assert parser.feed("</｜DSML｜parameter>\n") == [ToolCallArguments(0, '"')]
    assert parser.feed("</｜DSML｜invoke>\n") == [ToolCallArguments(0, "}"), ToolCallEnd(0)]
    assert not parser.ended
    assert parser.feed("</｜DSML｜tool_calls>") == []
    assert parser.ended
    assert parser.feed(V4.eos + "ignored") == parser.finish() == []
    assert not parser.malformed


def test_long_streams_take_linear_time() -> None:
    parser = StreamParser("chat")
    before = time.process_time()
    for delta in ['<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="x" string="true">']:
        parser.feed(delta)
    for _ in range(20_000):
        parser.feed("word ")
    # generous: it takes well under a second, a quadratic parser minutes
    assert time.process_time() - before < 20
    assert len(parser._buffer) < 50
