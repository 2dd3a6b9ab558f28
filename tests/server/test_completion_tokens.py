"""Text completions with token ids out: what a client that works with tokens needs."""

import json
from typing import Any

import pytest

from dsv4.encoding import Tokenizer
from dsv4.testing.stub import StubGenerator
from tests.server.conftest import Server


def ask(tokenizer: Tokenizer, said: list[int], **fields: Any) -> Any:
    server = Server(tokenizer, StubGenerator(said))
    body = {"prompt": [50, 51], "return_token_ids": True, **fields}
    return server.request("POST", "/v1/completions", json=body)


def test_every_token_is_told_and_nothing_in_them_ends_the_answer(tokenizer: Tokenizer) -> None:
    said = [60, tokenizer.token_id("</think>"), tokenizer.token_id("<｜User｜>"), 61, tokenizer.eos_id]
    (choice,) = ask(tokenizer, said, logprobs=1).json()["choices"]
    assert choice["token_ids"] == said
    assert choice["finish_reason"] == "stop"
    assert choice["text"] == tokenizer.decode(said[:-1])
    assert len(choice["logprobs"]["token_logprobs"]) == len(said)
    assert all(len(top) == 1 for top in choice["logprobs"]["top_logprobs"])
    (cut,) = ask(tokenizer, said, max_tokens=2).json()["choices"]
    assert (cut["token_ids"], cut["finish_reason"], cut["logprobs"]) == (said[:2], "length", None)


def test_a_stream_tells_each_token_once(tokenizer: Tokenizer) -> None:
    said = [*tokenizer.encode_text("💡 42"), tokenizer.eos_id]
    lines = ask(tokenizer, said, stream=True, logprobs=0).text.split("\n\n")
    chunks = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
    assert [token for chunk in chunks for token in chunk["token_ids"]] == said
    assert all(len(c["logprobs"]["token_logprobs"]) == len(c["token_ids"]) for c in chunks)
    assert "".join(chunk["text"] for chunk in chunks) == "💡 42"
    assert [chunk["finish_reason"] for chunk in chunks] == [None] * len(said) + ["stop"]


@pytest.mark.parametrize("fields", [{"echo": True}, {"stop": "x"}])
def test_what_would_change_the_tokens_is_refused(tokenizer: Tokenizer, fields: dict[str, Any]) -> None:
    response = ask(tokenizer, [60], **fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "return_token_ids"
    assert "token_ids" not in ask(tokenizer, [60, tokenizer.eos_id], return_token_ids=False).json()["choices"][0]


def test_a_prompt_has_one_begin_token(tokenizer: Tokenizer) -> None:
    asked = ([50, 51], [tokenizer.bos_id, 50, 51])
    counts = [ask(tokenizer, [60, tokenizer.eos_id], prompt=ids).json()["usage"]["prompt_tokens"] for ids in asked]
    assert counts == [3, 3]
