"""Whatever an endpoint sends, reading it raises nothing, and what is wrong with it is told."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from dsv4.verify.answer import Answer, answer_of, completion_of, merge

ODD: tuple[Any, ...] = (
    None, True, -5, 2.5, float("nan"), float("inf"), 10**400, "", "\ud83d", [], {}, [None], [[]], {"a": {}},
    ["\ud83d", 300, -1],
)  # fmt: skip
TOKEN = {"token": "a", "bytes": [97], "logprob": -0.5, "top_logprobs": [{"token": "a", "bytes": [97], "logprob": -0.5}]}
CALL = {"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "prompt_tokens_details": {"cached_tokens": 1}}
CHAT = {
    "id": "x",
    "choices": [
        {
            "message": {"role": "assistant", "content": "a", "reasoning_content": "b", "tool_calls": [CALL]},
            "logprobs": {"content": [TOKEN]},
            "finish_reason": "stop",
        }
    ],
    "usage": USAGE,
}
TEXT = {
    "choices": [
        {
            "text": "a",
            "token_ids": [5, 6],
            "logprobs": {"tokens": ["a", "b"], "token_logprobs": [-0.5, None], "top_logprobs": [{"a": -0.5}, None]},
            "finish_reason": "length",
        }
    ],
    "usage": USAGE,
}
CHUNK = {
    "id": "x",
    "choices": [
        {
            "delta": {"role": "assistant", "content": "a", "reasoning": "b", "tool_calls": [CALL]},
            "logprobs": {"content": [TOKEN]},
            "finish_reason": "stop",
        }
    ],
    "usage": USAGE,
}


def broken(value: Any) -> Iterator[Any]:
    """`value` with each of its parts in turn replaced by each odd value, and left out."""
    yield from ODD
    if isinstance(value, dict | list):
        places = list(value) if isinstance(value, dict) else range(len(value))
        for place in places:
            for other in broken(value[place]):
                changed = copy.copy(value)
                changed[place] = other
                yield changed
            changed = copy.copy(value)
            del changed[place]
            yield changed


def used(answer: Answer) -> None:
    """What checks do with an answer."""
    assert json.dumps([answer.usage, answer.problems]) is not None
    assert hash(answer.said) is not None
    for name in ("prompt_tokens", "completion_tokens", "prompt_tokens_details.cached_tokens"):
        count = answer.count(name)
        assert count is None or type(count) is int
    for token in answer.tokens:
        assert token.text is not None
        assert token.gap is None or token.gap >= 0 or token.gap < 0


@pytest.mark.parametrize(("read", "right"), [(answer_of, CHAT), (completion_of, TEXT)])
def test_reading_a_broken_answer_raises_nothing(read: Any, right: dict[str, Any]) -> None:
    assert read(right).problems == ()
    count = 0
    for value in broken(right):
        if isinstance(value, dict):  # what is no object is refused before
            used(read(value))
            count += 1
    assert count > 300


def test_reading_a_broken_stream_raises_nothing() -> None:
    assert merge([json.dumps(CHUNK), "[DONE]"]).problems == ()
    for value in broken(CHUNK):
        used(merge([json.dumps(value), json.dumps(CHUNK), "[DONE]"]))
    deep = "[" * 200_000
    assert "an event is no JSON" in merge([deep, "[DONE]"]).problems[0]


def test_halves_of_characters_are_kept_out_of_bytes() -> None:
    token = {**TOKEN, "bytes": None, "token": "\ud83d"}
    answer = answer_of({"choices": [{"message": {"role": "assistant"}, "logprobs": {"content": [token]}}]})
    assert answer.tokens[0].data == b"?"
