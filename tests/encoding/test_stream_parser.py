"""Streaming equals the batch parser, however the text is split."""

import json
import re
import time
from itertools import chain, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_completions import BROKEN, CALL_F, WELL_FORMED, block

from dsv4.encoding import (
    V4,
    ContentDelta,
    Delta,
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


CONTROL = re.compile("(" + "|".join(map(re.escape, V4.control_tokens)) + ")")
FUNCTIONS = [{"name": "f", "parameters": {"properties": {"x": {"type": "string"}, "y": {"type": "integer"}}}}]


def stream(pieces: list[str], mode: str, functions: list[dict[str, Any]] | None = None) -> ParsedCompletion:
    parser = StreamParser(mode, functions=functions)
    return gather(parser, [parser.feed(piece) for piece in pieces])


def gather(parser: StreamParser, deltas: list[list[Delta]]) -> ParsedCompletion:
    result = ParsedCompletion()
    for delta in [*chain(*deltas), *parser.finish()]:
        result.add(delta)
    result.ended, result.malformed, result.broken = parser.ended, parser.malformed, parser.broken
    return result


def by_tokens(text: str, mode: str, size: int) -> ParsedCompletion:
    """Control tokens as tokens, the text between them in pieces of `size` characters."""
    parser = StreamParser(mode)
    deltas: list[list[Delta]] = []
    for index, part in enumerate(CONTROL.split(text)):
        if index % 2:
            deltas.append(parser.control(part))
        else:
            deltas += [parser.ordinary(part[at : at + size]) for at in range(0, len(part), size)]
    return gather(parser, deltas)


@pytest.mark.parametrize(("text", "mode"), WELL_FORMED + BROKEN)
def test_every_split_point(text: str, mode: str) -> None:
    batch = parse_completion(text, mode)
    assert stream(list(text), mode) == batch
    assert by_tokens(text, mode, 1) == by_tokens(text, mode, 5) == batch
    for at in range(len(text) + 1):
        assert stream([text[:at], text[at:]], mode) == batch


@pytest.mark.parametrize(("text", "mode"), WELL_FORMED + BROKEN)
def test_every_prefix_streams_as_it_parses(text: str, mode: str) -> None:
    for end in range(len(text)):
        prefix = text[:end]
        assert stream(list(prefix), mode) == parse_completion(prefix, mode)


@settings(max_examples=600, deadline=None)
@given(opening=OPENINGS, text=TEXTS, mode=MODES, named=st.booleans(), data=st.data())
def test_random_text_and_splits(opening: str, text: str, mode: str, named: bool, data: st.DataObject) -> None:
    text = opening + text
    functions = FUNCTIONS if named else None
    batch = parse_completion(text, mode, functions=functions)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    edges = [0, *cuts, len(text)]
    pieces = [text[start:end] for start, end in pairwise(edges)]
    assert stream(pieces, mode, functions) == batch
    assert stream(list(text), mode, functions) == batch
    for call in batch.tool_calls:
        assert not named or call.name == "f"
        assert not call.complete or isinstance(json.loads(call.arguments), dict)
    assert batch.broken or all(call.complete for call in batch.tool_calls) or not batch.ended


@settings(max_examples=200, deadline=None)
@given(text=st.text() | TEXTS, mode=MODES)
def test_ordinary_tokens_are_text_whatever_they_say(text: str, mode: str) -> None:
    parser = StreamParser(mode)
    result = gather(parser, [parser.ordinary(char) for char in text])
    assert (result.content + result.reasoning_content, result.ended, result.tool_calls) == (text, False, [])


@pytest.mark.parametrize("token", [V4.user, V4.assistant, V4.latest_reminder, "<｜System｜>", V4.eos])
@pytest.mark.parametrize("mode", ["chat", "thinking"])
def test_a_role_token_ends_the_answer(token: str, mode: str) -> None:
    parser = StreamParser(mode)
    result = gather(parser, [parser.ordinary("It is 42.\n\n<"), parser.control(token), parser.ordinary("And 7?")])
    assert (result.content + result.reasoning_content, result.ended) == ("It is 42.\n\n<", True)


@pytest.mark.parametrize("token", [V4.pad, V4.bos, V4.think_open, *(token for _, token in V4.tasks), "<｜other｜>"])
def test_other_control_tokens_are_taken_out(token: str) -> None:
    parser = StreamParser("chat")
    result = gather(parser, [parser.ordinary("It is"), parser.control(token), parser.ordinary(" 42.")])
    assert (result.content, result.ended) == ("It is 42.", False)


def test_a_value_holds_the_text_of_tokens_it_quotes() -> None:
    parser = StreamParser("chat")
    body = "</｜DSML｜parameter> and <think>"
    deltas = [
        parser.feed('<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="x" string="true">'),
        parser.ordinary(body),
        parser.control(V4.think_close),
        parser.control(V4.pad),
        parser.feed("</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>"),
    ]
    (call,) = gather(parser, deltas).tool_calls
    assert json.loads(call.arguments) == {"x": body + V4.think_close}


@pytest.mark.parametrize("tail", ["<", "\n\n<", "</thi", "｜DSM", "<｜DSML", "\n\n", "<｜end▁of"])
def test_text_at_the_limit_is_not_lost(tail: str) -> None:
    assert stream(list("text" + tail), "chat").content == "text" + tail
    parser = StreamParser("chat")
    assert gather(parser, [parser.ordinary("text" + tail)]).content == "text" + tail


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
