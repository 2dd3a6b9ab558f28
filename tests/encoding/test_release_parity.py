"""Byte and id parity with the release, from recorded data."""

import json
from pathlib import Path
from typing import Any

import pytest

from dsv4.encoding import (
    V4,
    V4_0731,
    Tokenizer,
    encode_messages,
    parse_completion,
    parse_message_from_completion_text,
)
from dsv4.encoding.train_tokenizer import CJK, DIGITS, WORDS

Case = dict[str, Any]

# what our errors must name, per recorded rejection of encode_messages
NAMES = {
    "effort_low/chat": "reasoning_effort",
    "effort_xhigh/chat": "reasoning_effort",
    "bad_mode": "thinking_mode",
    "user_none/thinking": r"messages\[0\]\.content",
    "user_list_content/thinking": r"messages\[0\]\.content",
    "developer_empty/thinking": r"messages\[0\]\.content",
    "args_json_list/thinking": r"messages\[1\]\.tool_calls\[0\]\.function\.arguments",
    "args_json_string/thinking": r"messages\[1\]\.tool_calls\[0\]\.function\.arguments",
    "task_bogus_user/thinking": r"messages\[1\]\.task",
    "task_bogus_then_answer/thinking": r"messages\[1\]\.task",
    "unknown_role/thinking": r"messages\[0\]\.role",
    "direct_search_results_role/thinking": r"messages\[0\]\.role",
}
# their message text holds control strings, so the two modes must differ
INJECTED = {"args_dsml_in_value/thinking", "special_token_injection/thinking"}


def upstream_pair(folder: Path, number: int) -> tuple[list[Case], str, str, list[int]]:
    data = json.loads((folder / f"test_input_{number}.json").read_text(encoding="utf-8"))
    messages = data["messages"] if isinstance(data, dict) else data
    if isinstance(data, dict):
        messages[0]["tools"] = data["tools"]
    text = (folder / f"test_output_{number}.txt").read_text(encoding="utf-8")
    ids = json.loads((folder / f"test_output_{number}.token_ids.json").read_text(encoding="utf-8"))
    return messages, "chat" if number == 4 else "thinking", text, ids


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_upstream_pairs(encoding_data: Path, released: Tokenizer, number: int) -> None:
    messages, mode, text, ids = upstream_pair(encoding_data / "upstream", number)
    assert encode_messages(messages, mode) == text
    assert released.encode_messages(messages, mode, mode="official") == ids
    assert released.encode_messages(messages, mode) == ids


def test_accepted_cases(cases: list[Case], released: Tokenizer) -> None:
    accepted = [case for case in cases if case["fn"] == "encode_messages" and "expected" in case]
    assert len(accepted) > 70
    for case in accepted:
        arguments, options = (case["messages"], case["thinking_mode"]), case["kwargs"]
        assert encode_messages(*arguments, **options) == case["expected"], case["name"]
        official = released.encode_messages(*arguments, **options, mode="official")
        assert official == case["token_ids"], case["name"]
        safe = released.encode_messages(*arguments, **options)
        assert (safe == official) is (case["name"] not in INJECTED), case["name"]


def test_rejected_cases(cases: list[Case]) -> None:
    rejected = {case["name"]: case for case in cases if case["fn"] == "encode_messages" and "error" in case}
    assert rejected.keys() == NAMES.keys()
    for name, case in rejected.items():
        with pytest.raises(ValueError, match=NAMES[name]):
            encode_messages(case["messages"], case["thinking_mode"], **case["kwargs"])


def test_parse_cases(cases: list[Case]) -> None:
    parsed = [case for case in cases if case["fn"] == "parse_message_from_completion_text"]
    assert len(parsed) > 15
    for case in parsed:
        arguments = case["text"], case["thinking_mode"]
        if "expected" in case:
            assert parse_message_from_completion_text(*arguments) == case["expected"], case["name"]
            if case["name"] != "call_invalid_json_value_kept":  # repaired by the parser that serves
                assert parse_completion(*arguments).message() == case["expected"], case["name"]
        else:
            with pytest.raises(ValueError, match=r"."):
                parse_message_from_completion_text(*arguments)


def test_prompt_tokens_of_the_official_api(encoding_data: Path, released: Tokenizer) -> None:
    files = sorted((encoding_data / "api_vectors" / "official").glob("*.json"))
    assert len(files) == 5
    for file in files:
        record = json.loads(file.read_text(encoding="utf-8"))
        request = record["request"]
        assert request["thinking"] == {"type": "disabled"}
        ids = released.encode_messages(request["messages"], "chat")
        assert len(ids) == record["usage"]["prompt_tokens"], file.name


def test_fixed_texts(encoding_data: Path) -> None:
    texts = json.loads((encoding_data / "texts.json").read_text(encoding="utf-8"))
    names = {"dsml_token": "dsml", "thinking_start_token": "think_open", "thinking_end_token": "think_close"}
    block = texts["tools_block"].replace("{tool_schemas}", "{schemas}")
    for theirs, ours in names.items():
        block = block.replace("{" + theirs + "}", "{" + ours + "}")
    assert block == V4.tools_block
    assert texts["response_format"] == V4.response_format + "{schema}"
    assert texts["reasoning_effort_max"] == dict(V4.efforts)["max"]
    assert texts["effort_texts_flash_0731"] == dict(V4_0731.efforts)


def test_training_uses_the_released_pre_tokenizer(reference_data: Path) -> None:
    file = reference_data / "configs" / "tokenizer_added_tokens_and_pretokenizer.json"
    rules = json.loads(file.read_text(encoding="utf-8"))["pre_tokenizer"]["pretokenizers"]
    assert [rule["pattern"]["Regex"] for rule in rules[:3]] == [DIGITS, CJK, WORDS]


def test_released_ids(released: Tokenizer) -> None:
    assert (released.bos_id, released.eos_id, released.token_id(released.dialect.pad)) == (0, 1, 2)
    assert released.vocab_size == 129_280
    assert [released.token_id(t) for t in ("<think>", "</think>", "｜DSML｜")] == [128821, 128822, 128825]
    with pytest.raises(ValueError, match="token 'no such token' is not in the vocabulary"):
        released.token_id("no such token")
