"""The dialects beyond April's: which one a folder speaks, and what V4.1 writes."""

import json
from pathlib import Path
from typing import Any

import pytest

from dsv4.encoding import V4, V4_0731, V41, Dialect, Tokenizer, dialect_of_folder, encode_messages, served
from tests.conftest import ROOT

B, E, S, U, A = (f"<｜{name}｜>" for name in ("begin▁of▁sentence", "end▁of▁sentence", "System", "User", "Assistant"))
DSPARK = {"dspark_block_size": 5, "dspark_target_layer_ids": [0, 1, 2]}


def effort(n: int) -> str:
    return f"Reasoning Effort: {n} (range 1-100, the higher the value, the more thorough the reasoning)\n\n"


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


ANSWER = {"role": "assistant", "content": "x", "reasoning_content": "r"}


@pytest.mark.parametrize(
    ("messages", "mode", "level", "text"),
    [
        ([user("hi")], "thinking", None, f"{B}{S}{effort(75)}{U}hi{A}<think>"),
        ([user("hi")], "chat", None, f"{B}{U}hi{A}</think>"),
        ([system("Be brief."), user("hi")], "thinking", "low", f"{B}{S}{effort(50)}Be brief.{U}hi{A}<think>"),
        ([system("Be brief."), user("hi")], "chat", None, f"{B}{S}Be brief.{U}hi{A}</think>"),
        ([system("One."), system("Two."), user("hi")], "chat", None, f"{B}{S}One.{S}Two.{U}hi{A}</think>"),
        (
            [system("One."), user("a"), ANSWER, system("Mid."), user("b")],
            "thinking",
            "max",
            f"{B}{S}{effort(100)}One.{U}a{A}</think>x{E}{S}Mid.{U}b{A}<think>",
        ),
        ([user("hi")], "thinking", 7, f"{B}{S}{effort(7)}{U}hi{A}<think>"),
    ],
)
def test_v41(messages: list[dict[str, Any]], mode: str, level: Any, text: str) -> None:
    assert encode_messages(messages, mode, reasoning_effort=level, dialect=V41) == text


@pytest.mark.parametrize("level", [0, 101, True, 50.0, "medium"])
def test_efforts_that_do_not_exist(level: Any) -> None:
    with pytest.raises(ValueError, match="reasoning_effort: expected None or one of low, high, max or a number"):
        encode_messages([user("hi")], "thinking", reasoning_effort=level, dialect=V41)


def test_calls_in_v41() -> None:
    calls = [{"id": "1", "function": {"name": "f", "arguments": '{"city": "Wien", "n": 3}'}}]
    result = {"role": "tool", "tool_call_id": "1", "content": "sun"}
    messages = [
        system("S") | {"tools": [{"function": {"name": "f"}}]},
        user("a"),
        ANSWER | {"tool_calls": calls},
        result,
    ]
    text = encode_messages(messages, "thinking", dialect=V41)
    assert text.endswith(
        f"{A}<think>r</think>x\n\n<｜DSML｜ calls>\n"
        '<｜DSML｜ invoke name="f">\n'
        '<｜DSML｜ parameter name="city" string="true">Wien</｜DSML｜ parameter>\n'
        '<｜DSML｜ parameter name="n" string="false">3</｜DSML｜ parameter>\n'
        f"</｜DSML｜ invoke>\n</｜DSML｜ calls>{E}{U}<tool_result>sun</tool_result>{A}<think>"
    )
    assert '<｜DSML｜ calls>\n<｜DSML｜ invoke name="$TOOL_NAME">\n<｜DSML｜ parameter name="$PARAMETER_NAME"' in text


def test_the_script_and_the_service_write_a_call_without_parameters_differently() -> None:
    call = [user("a"), {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]
    assert '"f">\n\n</' in encode_messages(call, "chat")
    assert '"f">\n</' in encode_messages(call, "chat", dialect=served(V4))
    assert '"f">\n\n</' in encode_messages(call, "chat", dialect=served(V41))


@pytest.mark.parametrize(
    ("files", "dialect"),
    [
        ({}, V4),
        ({"config.json": {"model_type": "deepseek_v4"}}, V4),
        ({"config.json": DSPARK}, V4_0731),
        ({"config.json": {"dspark_block_size": None}}, V4),
        ({"config.json": {"model_type": "deepseek_v41"}}, V41),
        ({"config.json": {"architectures": ["DeepseekV41ForCausalLM"]}}, V41),
        ({"config.json": DSPARK, "encoding/encoding_dsv4.py": "no shortcuts"}, V4),
        ({"encoding/encoding_dsv4.py": "Reasoning Effort: Beyond maximum"}, V4_0731),
        ({"encoding/encoding.py": 'SYSTEM = "<｜System｜>"'}, V41),
        ({"config.json": DSPARK, "generation_config.json": {"dialect": "v4"}}, V4),
        ({"config.json": "[not json"}, V4),
    ],
)
def test_a_folder_says_its_dialect(tmp_path: Path, files: dict[str, Any], dialect: Dialect) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    assert dialect_of_folder(tmp_path) is dialect


def test_an_unknown_dialect_is_named(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"dialect": "v5"}')
    with pytest.raises(ValueError, match=r"dialect: expected one of v4, v4-0731, v4\.1, got 'v5'"):
        dialect_of_folder(tmp_path)


def test_nano_says_what_it_was_trained_with() -> None:
    folder = ROOT / "models" / "nano"
    assert json.loads((folder / "generation_config.json").read_text())["dialect"] == "v4"
    assert Tokenizer.load(folder).dialect is V4
    assert Tokenizer.load(folder, dialect="v4-0731").dialect is V4_0731
    with pytest.raises(ValueError, match=r"must hold '<｜System｜>', a control token of v4\.1"):
        Tokenizer.load(folder, dialect="v4.1")
