"""The strict parser, and what the lenient one makes of the same and of broken text."""

import json
from dataclasses import replace

import pytest
from sample_completions import BROKEN, CALL_F, WELL_FORMED, block

from dsv4.encoding import V4, encode_messages, parse_completion, parse_message_from_completion_text
from dsv4.encoding.controls import overlap

EOS = V4.eos


def test_strict_result_has_the_released_shape() -> None:
    text = "why</think>pre" + block(CALL_F) + EOS
    assert parse_message_from_completion_text(text, "thinking") == {
        "role": "assistant",
        "content": "pre",
        "reasoning_content": "why",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"x": "1"}'}}],
    }


@pytest.mark.parametrize(("text", "mode"), WELL_FORMED)
def test_lenient_agrees_with_strict(text: str, mode: str) -> None:
    completion = parse_completion(text, mode)
    assert completion.message() == parse_message_from_completion_text(text, mode)
    assert completion.ended
    assert not completion.malformed
    assert all(call.complete for call in completion.tool_calls)


@pytest.mark.parametrize(("text", "mode"), BROKEN)
def test_strict_rejects_with_value_error(text: str, mode: str) -> None:
    with pytest.raises(ValueError, match=r"format|unexpected|missing|duplicate"):
        parse_message_from_completion_text(text, mode)


@pytest.mark.parametrize(("text", "mode"), WELL_FORMED)
def test_every_cut_text_is_a_prefix_of_the_whole(text: str, mode: str) -> None:
    whole = parse_completion(text, mode)
    for end in range(len(text)):
        cut = parse_completion(text[:end], mode)
        if text[:end].endswith(EOS):
            continue  # no cut, but an end
        assert whole.reasoning_content.startswith(settled(cut.reasoning_content))
        assert whole.content.startswith(settled(cut.content))
        complete = [call for call in cut.tool_calls if call.complete]
        assert complete == whole.tool_calls[: len(complete)]
        assert not cut.malformed
        for call, full in zip(cut.tool_calls, whole.tool_calls, strict=False):
            assert full.arguments.startswith(call.arguments)


def settled(text: str) -> str:
    """Without an end that more text could make a control token or the start of a block."""
    longest = max((overlap(text, token) for token in V4.control_tokens), key=len)
    return text.removesuffix(longest).removesuffix("<").rstrip("\n")


def test_a_cut_call_is_not_in_the_message() -> None:
    text = "pre" + block(CALL_F, CALL_F)
    cut = parse_completion(text[: text.rindex("</｜DSML｜invoke")], "chat")
    assert [call.complete for call in cut.tool_calls] == [True, False]
    assert cut.tool_calls[1].arguments == '{"x": "1"'
    assert len(cut.message()["tool_calls"]) == 1
    assert not cut.ended


@pytest.mark.parametrize("tail", ["<", "a｜", "｜表｜", "x <t", "</", "\n", "\n\n"])
def test_ordinary_text_that_looks_like_a_marker_survives(tail: str) -> None:
    assert parse_completion("text " + tail, "chat").content == "text " + tail


def test_calls_without_closing_the_reasoning_are_found() -> None:
    completion = parse_completion("thinking" + block(CALL_F) + EOS, "thinking")
    assert (completion.reasoning_content, completion.content) == ("thinking", "")
    assert completion.message()["tool_calls"][0]["function"]["name"] == "f"


def test_stray_control_text_never_reaches_the_client() -> None:
    completion = parse_completion(f"a<think>b</think>c{V4.bos}d｜DSML｜e{EOS}f", "chat")
    assert completion.content == "abcde"


def test_render_then_parse_gives_the_message_back() -> None:
    arguments = {"s": 'multi\nline "q" <b>', "n": 1, "f": 1.5, "z": None, "o": {"k": [1, "é"]}, "t": True}
    function = {"name": "f", "arguments": json.dumps(arguments, ensure_ascii=False)}
    message = {
        "role": "assistant",
        "reasoning_content": "why",
        "content": "answer\n",
        "tool_calls": [{"type": "function", "function": function}],
    }
    user = {"role": "user", "content": "q"}
    prompt = encode_messages([user], "thinking")
    text = encode_messages([user, message], "thinking").removeprefix(prompt)
    assert parse_message_from_completion_text(text, "thinking") == message
    assert parse_completion(text, "thinking").message() == message


def test_a_later_dialect_is_only_data() -> None:
    later = replace(V4, name="later", calls_tag=" calls", invoke_tag=" invoke", parameter_tag=" parameter")
    function = {"name": "f", "arguments": '{"x": "1"}'}
    message = {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}
    text = encode_messages([message], "chat", add_default_bos_token=False, dialect=later)
    assert text.startswith('\n\n<｜DSML｜ calls>\n<｜DSML｜ invoke name="f">\n<｜DSML｜ parameter name="x"')
    strict = parse_message_from_completion_text(text, "chat", dialect=later)
    assert strict["tool_calls"] == message["tool_calls"]
    assert parse_completion(text, "chat", later).message() == strict


def test_unknown_mode() -> None:
    with pytest.raises(ValueError, match="thinking_mode"):
        parse_completion("x", "auto")
