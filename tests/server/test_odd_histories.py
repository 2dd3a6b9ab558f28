"""One odd item in a history must not end the session: placeholders, lenient readings, 400 by the client's own index."""

from typing import Any

import pytest

from dsv4.encoding import V4_0731, V41, Dialect
from dsv4.server.dialects.responses.sealed import seal, unseal
from dsv4.server.dialects.tokens import render_request
from dsv4.server.wire.errors import ApiError
from tests.server.conftest import Converse

USER = {"role": "user", "content": "Q"}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
PLAIN = {"type": "text", "text": "plain"}
TOOL = {"function": {"name": "f"}}
END = "<｜end▁of▁sentence｜>"


def prompt(api: str, dialect: Dialect = V4_0731, **body: Any) -> str:
    return render_request({"api": api, "body": body}, dialect)["prompt"]


def refusal(api: str, **body: Any) -> str:
    with pytest.raises(ApiError) as caught:
        prompt(api, **body)
    assert caught.value.status == 400
    return caught.value.message


def call(name: str, arguments: Any, call_id: str = "a") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def after_call(arguments: Any) -> str:
    turn = {"role": "assistant", "content": None, "tool_calls": [call("f", arguments)]}
    result = {"role": "tool", "tool_call_id": "a", "content": "r"}
    return (
        prompt("chat", messages=[USER, turn, result])
        .split("<｜DSML｜tool_calls>\n")[1]
        .split("\n</｜DSML｜tool_calls>")[0]
    )


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (PICTURE, "[Unsupported Image]"),
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "[Unsupported input_audio]"),
        ({"type": "refusal", "refusal": "No."}, "No."),
    ],
)
def test_parts_that_are_no_text(part: dict[str, Any], text: str) -> None:
    content = [{"type": "text", "text": "look"}, part]
    assert f"look\n\n{text}<" in prompt("chat", messages=[{"role": "user", "content": content}])
    if "Unsupported" in text:
        message = refusal("chat", messages=[USER, {"role": "user", "content": content}], unsupported="error")
        assert message.startswith("messages[1].content: part 1:")


def test_pictures_in_results() -> None:
    shot = [{"type": "text", "text": "shot"}, {"type": "image", "source": {}}]
    turn = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]}
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": shot}]}
    assert "<tool_result>shot\n\n[Unsupported Image]</tool_result>" in prompt("messages", messages=[USER, turn, result])
    assert refusal("messages", messages=[USER, turn, result], unsupported="error").startswith(
        "messages[2].content[0].content[1]"
    )
    output = {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": "x"}]}
    items = [USER, {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}, output]
    assert "<tool_result>[Unsupported Image]</tool_result>" in prompt("responses", input=items)
    assert refusal("responses", input=items, unsupported="error").startswith("input[2].output")


def test_arguments_in_every_shape() -> None:
    empty = '<｜DSML｜invoke name="f">\n</｜DSML｜invoke>'
    assert after_call("null") == after_call("") == after_call(None) == after_call({}) == empty
    for text in ("[1]", "5", "not json", '{"a": NaN}', '{"a": "\\ud83d"}'):
        assert f'name="arguments" string="true">{text}</' in after_call(text)
    assert 'name="x" string="true">café</' in after_call({"x": "café"})
    item = {"type": "function_call", "call_id": "a", "name": "f", "arguments": {"x": "café"}}
    assert 'name="x" string="true">café</' in prompt("responses", input=[USER, item])


def test_numbers_are_those_of_the_service() -> None:
    text = after_call('{"a": 1e-7, "b": 1e-05, "c": 18446744073709551616, "d": -0, "e": 2.50, "f": 9007199254740993}')
    found = [part.split("<")[0] for part in text.split('string="false">')[1:]]
    assert found == ["1e-7", "0.00001", "1.8446744073709552e+19", "-0.0", "2.5", "9007199254740993"]


def test_null_is_nothing_everywhere() -> None:
    nulls: list[Any] = [None, {"type": "text", "text": None}, {"type": "text", "text": "seen"}]
    turn = {"role": "assistant", "content": nulls, "tool_calls": [{**call(None, None), "type": None}]}  # type: ignore[arg-type]
    text = prompt("chat", messages=[{"role": "user", "content": nulls}, turn], tools=[{"type": None, **TOOL}])
    assert text.count("seen") == 2
    assert '<｜DSML｜invoke name="">\n</' in text
    used = {"type": "tool_use", "id": None, "name": None, "input": None}
    result = {"type": "tool_result", "tool_use_id": None, "content": nulls}
    blocks = [{"role": "user", "content": nulls}, {"role": "assistant", "content": [used]}]
    text = prompt("messages", messages=[*blocks, {"role": "user", "content": [result]}], system=nulls)
    assert text.count("seen") == 3
    assert '<｜DSML｜invoke name="">\n</' in text
    items = [
        None,
        {"type": None, "role": "user", "content": "seen"},
        {"type": "function_call", "call_id": None, "name": None, "arguments": None},
        {"type": "custom_tool_call", "call_id": "x", "name": "p", "input": None},
        {"type": "function_call_output", "call_id": None, "output": nulls},
    ]
    text = prompt("responses", input=items)
    assert text.count("seen") == 2
    assert '<｜DSML｜invoke name="">\n</' in text
    assert 'name="input" string="true"></' in text
    for api, body in (
        ("chat", {"messages": [USER]}),
        ("messages", {"messages": [USER]}),
        ("responses", {"input": "Q"}),
    ):
        assert prompt(api, **body, thinking={"type": None}).endswith("<think>")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"stdout": "é", "code": 0}, '{"stdout": "é", "code": 0}'),
        (5, "5"),
        (False, "false"),
        (PLAIN, "plain"),
        (0.5, "0.5"),
    ],
)
def test_results_of_any_kind(value: Any, text: str) -> None:
    shown = f"<tool_result>{text}</tool_result>"
    turn = {"role": "assistant", "tool_calls": [call("f", "{}")]}
    assert shown in prompt("chat", messages=[USER, turn, {"role": "tool", "tool_call_id": "a", "content": value}])
    assert shown in prompt("responses", input=[{"type": "function_call_output", "call_id": "a", "output": value}])
    result = {"type": "tool_result", "tool_use_id": "a", "content": value}
    assert shown in prompt("messages", messages=[{"role": "user", "content": [result]}])


def test_calls_and_thoughts_as_other_clients_keep_them() -> None:
    """Ids that are numbers, calls of custom tools, blocks of an answer that stand in fields of their own, too."""
    blocks = [
        {"type": "thinking", "thinking": "t"},
        {"type": "text", "text": "said"},
        {"type": "tool_use", "name": "f"},
    ]
    custom = {"id": 8, "type": "custom", "custom": {"name": "patch", "input": "*** Begin"}}
    turn = {"role": "assistant", "content": blocks, "reasoning_content": [{"type": "text"}], "reasoning": "why"}
    turn["tool_calls"] = [{**call("f", "{}"), "id": 7}, custom]
    results = [{"role": "tool", "tool_call_id": at, "content": f"r{at}"} for at in (8, 7)]
    text = prompt("chat", messages=[USER, turn, *results], tools=[TOOL])
    assert '<think>why</think>said\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">' in text
    assert 'invoke name="patch">\n<｜DSML｜parameter name="input" string="true">*** Begin</' in text
    assert text.endswith("<tool_result>r7</tool_result>\n\n<tool_result>r8</tool_result><｜Assistant｜><think>")


def test_names_and_numbers_of_tools(serve: Converse) -> None:
    names = ["a.b", "a/b", "a:b", "a b", *(f"t{index}" for index in range(200))]
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    assert serve("x", context_length=65536).post(tools=tools).status_code == 200
    assert "must be a string of 1 to 256 characters without quotes" in refusal(
        "responses", input="x", tools=[{"type": "function", "name": 'a"b'}]
    )


def test_turns_out_of_place() -> None:
    calls = {"role": "assistant", "content": "x", "tool_calls": [call("f", "{}")]}
    assert prompt("chat", messages=[USER, calls]).endswith(f"</｜DSML｜tool_calls>{END}<｜Assistant｜><think>")
    result = {"role": "tool", "tool_call_id": "gone", "content": "r"}
    assert prompt("chat", messages=[result, USER]).endswith("<tool_result>r</tool_result>\n\nQ<｜Assistant｜><think>")
    assert "<｜User｜>Q\n\n<tool_result>r</tool_result>" in prompt("chat", messages=[USER, result])
    assert f"</think>{END}<｜User｜>Q<｜Assistant｜>" in prompt(
        "chat", messages=[USER, {"role": "assistant", "content": []}, USER]
    )
    output = {"type": "function_call_output", "call_id": "c", "output": "r"}
    request = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    text = prompt("responses", tools=[{"type": "function", "name": "f"}], input=[USER, request, thought, output])
    assert "<think>hm</think>\n\n<｜DSML｜tool_calls>" in text
    assert text.endswith("<｜User｜><tool_result>r</tool_result><｜Assistant｜><think>")


def test_what_is_wrong_is_named_as_the_client_counts() -> None:
    assert refusal("responses", instructions="I", input=[USER, {"role": "robot", "content": "x"}]).startswith(
        "input[1].role"
    )
    for reference in ({"type": "item_reference", "id": "x"}, {"id": "x"}, {"type": None, "id": "x"}):
        assert refusal("responses", input=[USER, reference]).startswith("input[1]: nothing is stored")
    assert refusal("responses", input="x", prompt={"id": "x"}).startswith("prompt: prompts are not stored")
    assert refusal("responses", input=[USER, "x"]).startswith("input: item 1: expected an object")
    assert refusal("messages", messages=[{"role": "user", "content": [5]}]).startswith("messages[0].content: block 0")
    assert refusal("messages", messages=[USER], system=[PICTURE], unsupported="error").startswith("system: part 0")
    assert refusal("messages", system="S", messages=[USER, {"role": "user", "content": [{"type": 5}]}]).startswith(
        "messages[1].content[0]"
    )


def test_a_shell_of_the_client_is_shown() -> None:
    action = {"type": "exec", "command": ["ls"]}
    items = [
        USER,
        {"type": "local_shell_call", "call_id": "c", "action": action},
        {"type": "local_shell_call_output", "call_id": "c", "output": "a.txt"},
    ]
    text = prompt("responses", input=items)
    assert 'invoke name="local_shell"' in text
    assert '["ls"]' in text
    assert "<tool_result>a.txt</tool_result>" in text


@pytest.mark.parametrize("kind", ["bash_20250124", "text_editor_20250728", "memory_20250818", "computer_20250124"])
def test_tools_the_client_runs_are_kept(kind: str) -> None:
    text = prompt("messages", messages=[USER], tools=[{"type": kind, "name": "own"}, {"type": "web_search_20250305"}])
    assert '{"name": "own", "description": "' in text
    assert '"properties": {"' in text
    assert "web_search" not in text


@pytest.mark.parametrize(
    "fields",
    [
        {"enable_thinking": False},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"thinking": False},
        {"reasoning": {"effort": "none"}},
        {"reasoning_effort": "none"},
    ],
)
def test_switches_in_every_spelling(fields: dict[str, Any]) -> None:
    for api, body in (
        ("chat", {"messages": [USER]}),
        ("messages", {"messages": [USER]}),
        ("responses", {"input": "Q"}),
    ):
        assert prompt(api, **body, **fields).endswith("<｜Assistant｜></think>")
        assert "Reasoning Effort: 50 " in prompt(api, V41, **body, reasoning_effort="low")


@pytest.mark.parametrize(
    "choice", ["any", {"type": "any"}, {"type": "tool", "name": "f"}, {"type": "function", "name": "f"}]
)
def test_tool_choice_in_every_spelling(serve: Converse, choice: Any) -> None:
    server = serve("x", settings={"free_calls": True})
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert server.post(tools=tools, tool_choice=choice).status_code == 200
    assert server.generator.calls[-1].params.constraint is not None


def test_a_sealed_thought_comes_back(serve: Converse) -> None:
    server = serve("why so</think>yes")
    body = {"input": "Hi", "include": ["reasoning.encrypted_content"]}
    thought, answer = server.request("POST", "/v1/responses", json=body).json()["output"]
    assert answer["phase"] == "final_answer"
    assert unseal(thought["encrypted_content"]) == "why so"
    del thought["content"]
    text = prompt("responses", input=[USER, thought, answer, USER], tools=[{"type": "function", "name": "f"}])
    assert "<think>why so</think>yes" in text
    plain = server.request("POST", "/v1/responses", json={"input": "Hi"}).json()["output"][0]
    assert plain["encrypted_content"] is None


def test_a_seal_that_was_changed_holds_nothing() -> None:
    sealed = seal("thought 💡")
    assert unseal(sealed) == "thought 💡"
    for text in (sealed[:-3], sealed[:9] + "A" + sealed[10:], "", "dsv4-", "dsv4-é", "gAAAA", None, 5):
        assert unseal(text) is None


def test_history_grows_linearly() -> None:
    """Judged by work, not by time: the results of 3,000 calls stand behind their calls, whatever order they came in."""
    count = 3000
    calls = [{"type": "function_call", "call_id": f"c{i:05}", "name": "f", "arguments": "{}"} for i in range(count)]
    outputs = [{"type": "function_call_output", "call_id": f"c{i:05}", "output": f"r{i:05}"} for i in range(count)]
    text = prompt("responses", input=[USER, *calls, *reversed(outputs)])
    found = [part[:6] for part in text.split("<tool_result>")[1:]]
    assert found == [f"r{i:05}" for i in range(count)]


@pytest.mark.parametrize("count", [1, 999, 1000, 1001, 2500])
def test_long_histories_are_checked_in_runs(count: int) -> None:
    """What is wrong in one of many messages is named where it stands, and the others are read as in a short list."""
    for api in ("chat", "messages"):
        assert prompt(api, messages=[USER] * count).count("Q") == count
        wrong = {"role": "robot", "content": "x"}
        assert refusal(api, messages=[*[USER] * count, wrong, *[USER] * 1500]).startswith(f"messages[{count}].role")


def test_the_names_that_programs_outside_import() -> None:
    """They were the names of these functions before the interfaces had folders."""
    from dsv4.server.responses_ask import responses_ask
    from dsv4.server.responses_request import parse_responses, tools_of

    request = parse_responses({"input": "Q"})
    assert responses_ask(request, tools_of(request), V4_0731, "m", "").messages == [USER]
