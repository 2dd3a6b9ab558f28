"""Rendering against small golden texts of our own, and the errors for input that cannot be rendered."""

import copy
import json
from itertools import pairwise
from typing import Any

import pytest

from dsv4.encoding import V4, V4_0731, encode_messages, render_segments

BOS, EOS, USER, ASSISTANT = V4.bos, V4.eos, V4.user, V4.assistant
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def call(name: str, arguments: Any, call_id: str = "") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


TWO_CALLS = {
    "role": "assistant",
    "tool_calls": [call("f", '{"x": "1", "n": [2]}', "a"), call("g", "{}", "b")],
}
TWO_CALLS_TEXT = (
    "\n\n<｜DSML｜tool_calls>\n"
    '<｜DSML｜invoke name="f">\n'
    '<｜DSML｜parameter name="x" string="true">1</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="n" string="false">[2]</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n"
    '<｜DSML｜invoke name="g">\n\n</｜DSML｜invoke>\n'
    "</｜DSML｜tool_calls>"
)
HISTORY = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "q1"},
    {"role": "assistant", "content": "a1", "reasoning_content": "r1"},
    {"role": "user", "content": "q2"},
]

GOLDEN = {
    "chat": ("chat", HISTORY, {}, f"{BOS}S{USER}q1{ASSISTANT}</think>a1{EOS}{USER}q2{ASSISTANT}</think>"),
    "thinking_drops_old_reasoning": (
        "thinking",
        HISTORY,
        {},
        f"{BOS}S{USER}q1{ASSISTANT}</think>a1{EOS}{USER}q2{ASSISTANT}<think>",
    ),
    "thinking_keeps_reasoning": (
        "thinking",
        HISTORY,
        {"drop_thinking": False},
        f"{BOS}S{USER}q1{ASSISTANT}<think>r1</think>a1{EOS}{USER}q2{ASSISTANT}<think>",
    ),
    "context_is_not_rendered": (
        "thinking",
        HISTORY[3:],
        {"context": HISTORY[:3]},
        f"{USER}q2{ASSISTANT}<think>",
    ),
    "users_merge": (
        "chat",
        [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
        {},
        f"{BOS}{USER}a\n\nb{ASSISTANT}</think>",
    ),
    "tool_results_in_call_order": (
        "chat",
        [
            {"role": "user", "content": "go"},
            TWO_CALLS,
            {"role": "tool", "tool_call_id": "b", "content": "second"},
            {"role": "user", "content": "hm"},
            {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "first"}]},
        ],
        {"add_default_bos_token": False},
        f"{USER}go{ASSISTANT}</think>{TWO_CALLS_TEXT}{EOS}{USER}<tool_result>first</tool_result>\n\nhm\n\n"
        f"<tool_result>second</tool_result>{ASSISTANT}</think>",
    ),
    "tool_results_answer_calls_of_the_context": (
        "chat",
        [
            {"role": "tool", "tool_call_id": "b", "content": "2"},
            {"role": "tool", "tool_call_id": "a", "content": "1"},
        ],
        {"context": [{"role": "user", "content": "go"}, TWO_CALLS]},
        f"{USER}<tool_result>1</tool_result>\n\n<tool_result>2</tool_result>{ASSISTANT}</think>",
    ),
    "action_task": (
        "thinking",
        [{"role": "user", "content": "q", "task": "action"}, {"role": "assistant", "content": "Search"}],
        {},
        f"{BOS}{USER}q{ASSISTANT}<think><｜action｜>Search{EOS}",
    ),
    "title_task": (
        "chat",
        [{"role": "assistant", "content": "a", "task": "title"}],
        {},
        f"{BOS}a{EOS}<｜title｜>",
    ),
    "latest_reminder_and_prefix": (
        "chat",
        [
            {"role": "latest_reminder", "content": "now"},
            {"role": "assistant", "content": "```", "wo_eos": True},
        ],
        {},
        f"{BOS}<｜latest_reminder｜>now```",
    ),
    "response_format": (
        "chat",
        [{"role": "developer", "content": "d", "response_format": {"é": 1}}],
        {},
        f"{BOS}{USER}d\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"
        f'{{"é": 1}}{ASSISTANT}</think>',
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str) -> None:
    mode, messages, options, expected = GOLDEN[name]
    before = copy.deepcopy((messages, options))
    assert encode_messages(messages, mode, **options) == expected
    assert (messages, options) == before, "the arguments must not change"
    assert "".join(segment.text for segment in render_segments(messages, mode, **options)) == expected


def test_tools_block_lists_schemas_and_keeps_reasoning() -> None:
    system = {"role": "system", "content": "S", "tools": [TOOL, TOOL]}
    text = encode_messages([system, *HISTORY[1:]], "thinking")
    schema = json.dumps(TOOL["function"])
    assert text.startswith(f"{BOS}S\n\n## Tools\n\nYou have access")
    assert f"### Available Tool Schemas\n\n{schema}\n{schema}\n\nYou MUST strictly follow" in text
    assert "<think>r1</think>a1" in text


def test_effort_texts_of_both_releases() -> None:
    messages = [{"role": "user", "content": "q"}]

    def prefix(effort: str | None, dialect: Any) -> str:
        text = encode_messages(messages, "thinking", reasoning_effort=effort, dialect=dialect)
        return text.removeprefix(BOS).partition(USER)[0]

    assert prefix(None, V4) == prefix("high", V4) == prefix(None, V4_0731) == prefix("low", V4_0731) == ""
    assert prefix("max", V4) == prefix("high", V4_0731) != ""
    assert prefix("max", V4_0731).startswith("Reasoning Effort: Beyond maximum")
    assert encode_messages(messages, "chat", reasoning_effort="max").startswith(BOS + USER)


def test_segments_know_their_author() -> None:
    messages = [
        {"role": "system", "content": "SYS", "tools": [TOOL], "response_format": {"RF": 1}},
        {"role": "user", "content": "USR"},
        {**TWO_CALLS, "reasoning_content": "THINK", "content": "ANSWER"},
        {"role": "tool", "tool_call_id": "a", "content": "RESULT"},
    ]
    segments = render_segments(messages, "thinking")
    untrusted = "|".join(segment.text for segment in segments if not segment.trusted)
    schema = json.dumps(TOOL["function"])
    assert untrusted == f'SYS|{schema}|{{"RF": 1}}|USR|THINK|ANSWER|f|x|1|n|[2]|g|RESULT'
    assert all((left.trusted, left.said_by) != (right.trusted, right.said_by) for left, right in pairwise(segments))


U = {"role": "user", "content": "q"}
REJECTED: list[tuple[list[Any], str]] = [
    ([U, U, {"role": "user", "content": None}], r"messages\[2\]\.content: expected a string, got None"),
    ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], r"messages\[0\]\.content: .* got list"),
    ([U, {"role": "developer", "content": ""}], r"messages\[1\]\.content: expected a non-empty string"),
    (
        [{"role": "critic", "content": "x"}],
        r"messages\[0\]\.role: unknown role 'critic', .* system, developer",
    ),
    ([{"content": "x"}], r"messages\[0\]\.role: expected a string, got None"),
    ([{"role": ["user"]}], r"messages\[0\]\.role: expected a string, got list"),
    (["hello"], r"messages\[0\]: expected an object, got str"),
    ([{**U, "task": "bogus"}], r"messages\[0\]\.task: expected one of action, .* got 'bogus'"),
    ([{**U, "task": ["x"]}], r"messages\[0\]\.task: expected one of"),
    ([{"role": "latest_reminder"}], r"messages\[0\]\.content: expected a string"),
    ([{"role": "system", "content": ["x"]}], r"messages\[0\]\.content: expected a string, got list"),
    ([{"role": "system", "tools": [{"type": "function"}]}], r"messages\[0\]\.tools\[0\]\.function: "),
    ([{"role": "system", "tools": {"a": 1}}], r"messages\[0\]\.tools: expected a list, got dict"),
    (
        [{"role": "system", "response_format": {"a": {1}}}],
        r"messages\[0\]\.response_format: cannot be written",
    ),
    ([U, {"role": "assistant", "reasoning_content": 1}], r"messages\[1\]\.reasoning_content: .* got int"),
    (
        [U, {"role": "assistant", "tool_calls": [call("f", "[1]")]}],
        r"tool_calls\[0\].*arguments: .* got list",
    ),
    (
        [U, {"role": "assistant", "tool_calls": [call("f", "null")]}],
        r"arguments: expected a JSON object, got None",
    ),
    (
        [U, {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}],
        r"function\.arguments: missing",
    ),
    (
        [U, {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}],
        r"function\.name: expected",
    ),
    ([U, {"role": "assistant", "tool_calls": [{}]}], r"messages\[1\]\.tool_calls\[0\]\.function"),
    ([U, {"role": "assistant", "tool_calls": ["f"]}], r"messages\[1\]\.tool_calls\[0\]: expected an object"),
    ([{"role": "tool", "content": [{"type": "text", "text": 1}]}], r"messages\[0\]\.content\[0\]\.text: "),
    ([{"role": "tool", "content": ["x"]}], r"messages\[0\]\.content\[0\]: expected an object"),
    ([{"role": "tool", "tool_call_id": 5, "content": ""}], r"messages\[0\]\.tool_call_id: expected a string"),
]


@pytest.mark.parametrize(("messages", "error"), REJECTED)
def test_rejected_input_is_named(messages: list[Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        encode_messages(messages, "thinking", drop_thinking=False)


def test_rejected_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="thinking_mode: expected one of chat, thinking, got 'auto'"):
        encode_messages([U], "auto")
    with pytest.raises(ValueError, match="reasoning_effort: expected None or one of high, max, got 'low'"):
        encode_messages([U], "chat", reasoning_effort="low")
    with pytest.raises(ValueError, match=r"context\[0\]: expected an object"):
        encode_messages([U], "chat", context=[None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="messages: expected a list, got str"):
        encode_messages("hi", "chat")  # type: ignore[arg-type]
