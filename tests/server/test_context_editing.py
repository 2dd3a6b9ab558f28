"""Context editing of Anthropic's messages: what is cleared, what stays, and what the answer tells."""

import copy
from typing import Any

import anthropic
import pytest

from dsv4.encoding import Tokenizer
from dsv4.server.dialects.messages.context_editing import CLEARED
from tests.server.conftest import MODEL, Converse, Server, listening
from tests.server.test_chat import CALL

TOOLS: Any = [
    {"name": name, "input_schema": {"type": "object", "properties": {"path": {"type": "string"}}}}
    for name in ("read", "list")
]
BETA = "context-management-2025-06-27"
LONG = "a long result of a tool, with many words in it " * 4


def use(number: int, name: str = "read") -> list[dict[str, Any]]:
    """Two messages: a thought with a call, and its result."""
    call = {"type": "tool_use", "id": f"toolu{number:02d}", "name": name, "input": {"path": f"file{number}"}}
    thought = {"type": "thinking", "thinking": f"thought {number}", "signature": "x"}
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": f"{LONG}{number}"}
    return [{"role": "assistant", "content": [thought, call]}, {"role": "user", "content": [result]}]


def talk(uses: int = 5, name: str = "read") -> list[dict[str, Any]]:
    task = {"role": "user", "content": "Read the files."}
    return [task, *(message for number in range(uses) for message in use(number, name))]


def tools_edit(**fields: Any) -> dict[str, Any]:
    trigger = {"type": "input_tokens", "value": 100}
    return {"type": "clear_tool_uses_20250919", "trigger": trigger, **fields}


def prompt_of(server: Server, messages: list[dict[str, Any]], *edits: dict[str, Any]) -> str:
    body = {"messages": messages, "tools": TOOLS, "max_tokens": 100}
    if edits:
        body["context_management"] = {"edits": list(edits)}
    answer = server.request("POST", "/render", json={"api": "messages", "body": body})
    assert answer.status_code == 200, answer.text
    return answer.json()["prompt"]


def results(prompt: str) -> list[int]:
    return [number for number in range(9) if f"{LONG}{number}" in prompt]


def thoughts(prompt: str) -> list[int]:
    return [number for number in range(9) if f"thought {number}" in prompt]


@pytest.fixture
def server(serve: Converse) -> Server:
    return serve("Done.", context_length=16_384)


def test_the_oldest_results_are_cleared(server: Server) -> None:
    assert results(prompt_of(server, talk())) == [0, 1, 2, 3, 4]
    prompt = prompt_of(server, talk(), tools_edit())
    assert (results(prompt), prompt.count(CLEARED)) == ([2, 3, 4], 2)
    assert "file0" in prompt
    assert thoughts(prompt) == [0, 1, 2, 3, 4]
    for kept, left in ((0, []), (1, [4]), (9, [0, 1, 2, 3, 4])):
        assert results(prompt_of(server, talk(), tools_edit(keep={"type": "tool_uses", "value": kept}))) == left


def test_triggers(server: Server) -> None:
    few = tools_edit(trigger={"type": "tool_uses", "value": 5})
    assert results(prompt_of(server, talk(5), few)) == [0, 1, 2, 3, 4]
    assert results(prompt_of(server, talk(6), few)) == [3, 4, 5]
    large = tools_edit(trigger={"type": "input_tokens", "value": 100_000})
    assert prompt_of(server, talk(), large) == prompt_of(server, talk())
    default = {"type": "clear_tool_uses_20250919"}
    assert prompt_of(server, talk(), default) == prompt_of(server, talk())


def test_excluded_tools_inputs_and_least(server: Server) -> None:
    mixed = [*talk(2), *use(2, "list"), *use(3), *use(4)]
    one = {"type": "tool_uses", "value": 1}
    prompt = prompt_of(server, mixed, tools_edit(keep=one, exclude_tools=["list"]))
    assert results(prompt) == [2, 4]
    prompt = prompt_of(server, mixed, tools_edit(keep=one, clear_tool_inputs=True))
    assert ("file0" in prompt, "file2" in prompt, "file4" in prompt) == (False, False, True)
    prompt = prompt_of(server, mixed, tools_edit(keep=one, clear_tool_inputs=["list"]))
    assert ("file0" in prompt, "file2" in prompt, "file4" in prompt) == (True, False, True)
    least = {"type": "input_tokens", "value": 10_000}
    assert prompt_of(server, mixed, tools_edit(clear_at_least=least)) == prompt_of(server, mixed)
    # a result shorter than the note stays
    short = copy.deepcopy(mixed)
    short[2]["content"][0]["content"] = "ok"
    assert prompt_of(server, short, tools_edit()).count(CLEARED) == 1


def test_reasoning_of_old_turns_is_cleared(server: Server) -> None:
    first = [*talk(2), {"role": "assistant", "content": "Both read."}]
    second = [{"role": "user", "content": "Go on."}, *use(2), *use(3)]
    edit = {"type": "clear_thinking_20251015"}
    assert thoughts(prompt_of(server, [*first, *second])) == [0, 1, 2, 3]
    assert thoughts(prompt_of(server, [*first, *second], edit)) == [2, 3]
    for keep, left in (
        ({"type": "thinking_turns", "value": 1}, [2, 3]),
        ({"type": "thinking_turns", "value": 2}, [0, 1, 2, 3]),
        ("all", [0, 1, 2, 3]),
        ({"type": "all"}, [0, 1, 2, 3]),
    ):
        assert thoughts(prompt_of(server, [*first, *second], {**edit, "keep": keep})) == left
    # a note of the client beside a result begins no turn
    noted = copy.deepcopy([*first, *second])
    noted[-1]["content"].append({"type": "text", "text": "A reminder."})
    assert thoughts(prompt_of(server, [*noted, *use(4)], edit)) == [2, 3, 4]


def test_sdk_tells_what_was_cleared(server: Server) -> None:
    management: Any = {"edits": [{"type": "clear_thinking_20251015"}, tools_edit()]}
    turn = [{"role": "assistant", "content": "Both read."}, {"role": "user", "content": "Go on."}]
    messages: Any = [*talk(2), *turn, *use(2), *use(3), *use(4)]
    fields: Any = {"model": MODEL, "max_tokens": 50, "messages": messages, "tools": TOOLS, "betas": [BETA]}

    async def ask(client: anthropic.AsyncAnthropic) -> tuple[Any, Any, Any, Any]:
        plain = await client.beta.messages.create(**fields)
        whole = await client.beta.messages.create(**fields, context_management=management)
        async with client.beta.messages.stream(**fields, context_management=management) as stream:
            async for _ in stream:
                pass
            streamed = await stream.get_final_message()
        counting = {name: value for name, value in fields.items() if name != "max_tokens"}
        return (
            plain,
            whole,
            streamed,
            await client.beta.messages.count_tokens(**counting, context_management=management),
        )

    plain, whole, streamed, count = server.claude(ask)
    assert plain.context_management is None
    thinking, tools = whole.context_management.applied_edits
    assert (thinking.cleared_thinking_turns, tools.cleared_tool_uses) == (1, 2)
    assert streamed.context_management == whole.context_management
    saved = thinking.cleared_input_tokens + tools.cleared_input_tokens
    assert plain.usage.input_tokens - whole.usage.input_tokens == saved > 0
    assert count.input_tokens == whole.usage.input_tokens
    assert count.context_management.original_input_tokens == plain.usage.input_tokens


def test_nothing_to_clear_is_told_too(server: Server) -> None:
    for edits in ([], None, [{"type": "clear_thinking_20251015", "keep": "all"}], [{"type": "compact_20260112"}]):
        body = {"messages": talk(1), "tools": TOOLS, "context_management": {"edits": edits}}
        answer = server.request("POST", "/v1/messages", json=body).json()
        assert answer["context_management"] == {"applied_edits": []}


def test_the_sampled_tokens_do_not_bring_cleared_reasoning_back(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve("secret thought" + CALL)
    weather = [{"name": "weather", "input_schema": {"type": "object"}}]
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "tools": weather}
    first = server.request("POST", "/v1/messages", json=body).json()
    result = {"type": "tool_result", "tool_use_id": first["content"][-1]["id"], "content": "sunny"}
    body["messages"] += [{"role": "assistant", "content": first["content"]}, {"role": "user", "content": [result]}]
    body["messages"] += [
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "later"}, {"type": "text", "text": "Sun."}]}
    ]
    body["messages"] += [
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "last"}, {"type": "text", "text": "Rain."}]},
    ]
    body["messages"] += [{"role": "user", "content": "Thanks."}]
    server.request("POST", "/v1/messages", json=body)
    assert "secret thought" in tokenizer.decode(server.generator.calls[-1].prompt)
    body["context_management"] = {"edits": [{"type": "clear_thinking_20251015"}]}
    server.request("POST", "/v1/messages", json=body)
    prompt = tokenizer.decode(server.generator.calls[-1].prompt)
    assert ("secret thought" in prompt, "later" in prompt, "last" in prompt) == (False, False, True)


@pytest.mark.parametrize(
    ("edit", "field"),
    [
        ({"type": "clear_thinking_20251015", "keep": {"type": "thinking_turns", "value": 0}}, "value"),
        ({"type": "clear_thinking_20251015", "keep": "some"}, "keep"),
        (tools_edit(keep={"type": "input_tokens", "value": 3}), "keep.type"),
        (tools_edit(keep={"type": "tool_uses", "value": -1}), "keep.value"),
        (tools_edit(trigger={"type": "messages", "value": 3}), "trigger"),
        (tools_edit(exclude_tools="read"), "exclude_tools"),
        ({}, "type"),
        (5, "edits[0]"),
    ],
)
def test_wrong_edits_are_named(server: Server, edit: Any, field: str) -> None:
    body = {"messages": talk(1), "context_management": {"edits": [edit]}}
    answer = server.request("POST", "/v1/messages", json=body)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert message.startswith("context_management.edits[0]")
    assert field in message


def test_sync_sdk_over_a_socket(server: Server) -> None:
    fields: Any = {"model": MODEL, "max_tokens": 50, "messages": talk(), "tools": TOOLS, "betas": [BETA]}
    management: Any = {"edits": [tools_edit()]}
    with listening(server) as url, anthropic.Anthropic(base_url=url, api_key="any", max_retries=0) as client:
        whole = client.beta.messages.create(**fields, context_management=management)
        with client.beta.messages.stream(**fields, context_management=management) as stream:
            streamed = stream.get_final_message()
    assert whole.context_management == streamed.context_management
    (edit,) = whole.context_management.applied_edits
    assert (edit.type, edit.cleared_tool_uses) == ("clear_tool_uses_20250919", 2)
