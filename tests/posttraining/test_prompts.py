"""Prompts of functions and files: what is wrong with them is told by the name of the function, or by file and line."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from dsv4.encoding import Tokenizer
from dsv4.posttraining.prompts import GeneratedPrompts, read_prompts
from dsv4.posttraining.types import Effort, Prompt
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(ROOT / "models" / "nano")


def raising(rng: random.Random, tokenizer: Tokenizer) -> Prompt:
    raise KeyError("gone")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (raising, r"m:f raised KeyError: 'gone' \(.*test_prompts\.py, line \d+\)"),
        (lambda rng: None, r"m:f raised TypeError"),
        (lambda rng, tokenizer: None, "m:f returned NoneType; it must return a Prompt"),
        (lambda rng, tokenizer: "hi", "m:f returned str; it must return a Prompt"),
        (lambda rng, tokenizer: Prompt("k", (), "d"), "m:f raised ValueError: prompt k: tokens must not be empty"),
        (lambda rng, tokenizer: Prompt("k", (-1,), "d"), r"m:f: prompt k: tokens must be whole .* \[0, \d+\), got -1"),
        (lambda rng, tokenizer: Prompt("k", (1.5,), "d"), "got 1.5"),  # pyrefly: ignore
        (lambda rng, tokenizer: Prompt("k", (10**6,), "d"), "got 1000000"),
        (lambda rng, tokenizer: Prompt("k", (1,), "d", "high"), "prompt k: effort must be an Effort"),  # pyrefly: ignore
        (lambda rng, tokenizer: Prompt(5, (1,), "d"), "key and domain must be strings, got 5"),  # pyrefly: ignore
        (lambda rng, tokenizer: Prompt("\ud800", (1,), "d"), r"m:f: key '\\ud800' is no text: surrogates not allowed"),
        (lambda rng, tokenizer: Prompt("k", (1,), "d"), "m:f: 100 draws gave no prompt beside the 1"),
    ],
)
def test_what_a_function_does_wrong_is_told_with_its_name(made: Any, message: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=message):
        GeneratedPrompts("m:f", made, tokenizer, {}, 0).batch(0, 2)


GOOD = {"messages": [{"role": "user", "content": "2 + 2?"}], "verifier": "number", "answer": 4}


def test_files_are_read_as_people_save_them(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A byte order mark, line ends of Windows, blank lines; the key is the line's number."""
    file = tmp_path / "p.jsonl"
    line = json.dumps(GOOD)
    file.write_bytes(f"\ufeff{line}\r\n\r\n{line}\r\n".encode())
    assert [(p.key, p.effort, p.task["answer"]) for p in read_prompts(file, tokenizer)] == [
        ("1", Effort.HIGH, 4),
        ("3", Effort.HIGH, 4),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "no prompt: not valid JSON"),
        (b"[1]", "no prompt, but a list"),
        (b'{"a": 1, "a": 2}', "the key 'a' is there twice in one object"),
        (b'{"messages": "\xff"}', "column 15: 0xff is not valid UTF-8"),
        (b"[" * 100_000, "no prompt: not valid JSON"),
        ({**GOOD, "answers": 4}, "answers: unknown field"),
        ({"messages": GOOD["messages"], "verifier": "number"}, "answer is missing"),
        ({"messages": GOOD["messages"], "rubric": "is short", "answer": 4}, "verifier is missing"),
        ({**GOOD, "rubric": 5}, "rubric: expected a string, got int"),
        ({**GOOD, "messages": []}, "messages must be a list that is not empty"),
        ({**GOOD, "messages": ["hi"]}, r"messages\[0\]: expected an object, got str"),
        ({**GOOD, "messages": [{"role": "user"}]}, r"messages\[0\]\.content"),
        ({**GOOD, "messages": [{"role": "user", "content": "\ud83d"}]}, "surrogate"),
        ({**GOOD, "messages": [{"role": "bot", "content": "a"}]}, r"messages\[0\]\.role"),
        ({**GOOD, "effort": "low"}, "effort must be one of non-think, high, max, got 'low'"),
        ({**GOOD, "effort": ["high"]}, "effort must be one of"),
        ({**GOOD, "tools": "f"}, "tools: expected a list"),
        ({**GOOD, "tools": ["f"]}, r"tools\[0\]: expected an object"),
        ({**GOOD, "tools": [{"type": "function", "function": {}}]}, r"tools\[0\]\.function\.name: expected a string"),
        ({**GOOD, "tools": [{"name": "f"}, {"function": {"name": "g"}}]}, r"tools\[0\]\.function: expected an object"),
        ({**GOOD, "messages": [*GOOD["messages"], {"role": "assistant", "content": "4"}]}, "the last one is an answer"),
        ({**GOOD, "verifier": 5}, "verifier: expected a string, got int"),
        ({**GOOD, "domain": 5}, "domain: expected a string, got int"),
        ({**GOOD, "key": "1"}, "key '1' is there twice"),
    ],
)
def test_faults_of_a_file_name_line_and_field(line: Any, message: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = tmp_path / "p.jsonl"
    bad = line if isinstance(line, bytes) else json.dumps(line).encode()
    file.write_bytes(json.dumps(GOOD).encode() + b"\n" + bad + b"\n")
    with pytest.raises(ValueError, match=message) as caught:
        read_prompts(file, tokenizer)
    assert str(caught.value).startswith(f"{file}, line 2")


def test_tools_are_those_of_openai_or_functions_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    function = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
    file = tmp_path / "p.jsonl"
    tools = ([function], [{"type": "function", "function": function}])
    file.write_text("".join(json.dumps({**GOOD, "tools": each}) + "\n" for each in tools))
    bare, wrapped = read_prompts(file, tokenizer)
    assert bare.task["functions"] == wrapped.task["functions"] == [function]
    assert bare.tokens == wrapped.tokens
