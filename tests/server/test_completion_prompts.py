"""Text completions of several prompts: order and indices of the choices, streams, usage, limits, errors by place."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openai
import pytest

from dsv4.encoding import Tokenizer
from dsv4.generation import SamplingParams
from dsv4.server import Keys
from dsv4.server.accounts.ledger import Ledger, read_usage
from tests.server.conftest import MODEL, Converse, Server

PROMPTS = ["Paris ", "The town of Rome ", "x"]


@pytest.fixture
def saying(serve: Converse, tokenizer: Tokenizer) -> Server:
    """Answers with the prompt's length, as many times as the seed says."""

    def script(prompt: Sequence[int], params: SamplingParams) -> list[int]:
        text = f"{len(prompt)} " * (1 + (params.seed or 0) % 3)
        return [*tokenizer.encode_text(text), tokenizer.eos_id]

    return serve(script, reused=1)


def ask(server: Server, **fields: Any) -> Any:
    response = server.request("POST", "/v1/completions", json=fields)
    assert response.status_code == 200, response.text
    return response.json()


def chunks_of(server: Server, **fields: Any) -> list[dict[str, Any]]:
    text = server.request("POST", "/v1/completions", json={**fields, "stream": True}).text
    lines = [line[6:] for line in text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize("fields", [{}, {"n": 2, "seed": 0}, {"echo": True}, {"logprobs": 1}])
def test_choices_are_those_of_each_prompt_alone(saying: Server, fields: dict[str, Any]) -> None:
    whole = ask(saying, prompt=PROMPTS, **fields)
    alone = [ask(saying, prompt=prompt, **fields) for prompt in PROMPTS]
    wanted = [choice for answer in alone for choice in answer["choices"]]
    assert whole["choices"] == [{**choice, "index": index} for index, choice in enumerate(wanted)]
    assert len(wanted) == len(PROMPTS) * fields.get("n", 1)
    for name in ("prompt_tokens", "completion_tokens", "total_tokens", "prompt_cache_hit_tokens"):
        assert whole["usage"][name] == sum(answer["usage"][name] for answer in alone), name


def test_token_ids_are_prompts_too(saying: Server, tokenizer: Tokenizer) -> None:
    texts = ask(saying, prompt=PROMPTS)
    ids = [tokenizer.encode_text(prompt) for prompt in PROMPTS]
    assert ask(saying, prompt=ids)["choices"] == texts["choices"]
    assert ask(saying, prompt=[ids[0], PROMPTS[1], [tokenizer.bos_id, *ids[2]]])["choices"] == texts["choices"]
    assert ask(saying, prompt=[ids[1]])["choices"] == ask(saying, prompt=ids[1])["choices"]
    plain = ask(saying, prompt=ids, return_token_ids=True)["choices"]
    assert [tokenizer.decode(choice["token_ids"][:-1]) for choice in plain] == [
        choice["text"] for choice in texts["choices"]
    ]


@pytest.mark.parametrize("fields", [{}, {"n": 2, "seed": 1, "echo": True}, {"logprobs": 1}])
def test_a_stream_equals_the_whole(saying: Server, fields: dict[str, Any]) -> None:
    whole = ask(saying, prompt=PROMPTS, **fields)
    chunks = chunks_of(saying, prompt=PROMPTS, **fields, stream_options={"include_usage": True})
    for index, choice in enumerate(whole["choices"]):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(each["text"] for each in own) == choice["text"]
        assert [each["finish_reason"] for each in own] == [None] * (len(own) - 1) + ["stop"]
        if "logprobs" in fields:
            for name, values in choice["logprobs"].items():
                assert [value for each in own for value in each["logprobs"][name]] == values, name
    assert [chunk["usage"] for chunk in chunks if chunk["usage"]] == [whole["usage"]]
    assert chunks[-1]["usage"]
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_sdk(saying: Server, tokenizer: Tokenizer) -> None:
    ids = [tokenizer.encode_text(prompt) for prompt in PROMPTS]

    async def use(client: openai.AsyncOpenAI) -> tuple[list[str], list[str], list[str]]:
        texts = await client.completions.create(model=MODEL, prompt=PROMPTS, n=2, seed=1)
        tokens = await client.completions.create(model=MODEL, prompt=ids, n=2, seed=1)
        streamed = [""] * 6
        async for chunk in await client.completions.create(model=MODEL, prompt=PROMPTS, n=2, seed=1, stream=True):
            for choice in chunk.choices:
                streamed[choice.index] += choice.text
        return [choice.text for choice in texts.choices], [choice.text for choice in tokens.choices], streamed

    texts, tokens, streamed = saying.sdk(use)
    assert texts == tokens == streamed
    assert len(set(texts)) == 6


def test_prompts_do_not_wait_for_each_other(serve: Converse, tokenizer: Tokenizer) -> None:
    """The answer to the second one is over while the first one goes on; its further choices wait for its own first."""

    def script(prompt: Sequence[int], params: SamplingParams) -> list[int]:
        long = prompt[1:] == tokenizer.encode_text("long")
        return tokenizer.encode_text("word " * 300 if long else "ok")

    server = serve(script)
    chunks = chunks_of(server, prompt=["long", "short"], n=2)
    ends = [chunk["choices"][0]["index"] for chunk in chunks if chunk["choices"][0]["finish_reason"]]
    assert set(ends[:2]) == {2, 3}
    assert set(ends[2:]) == {0, 1}
    asked = [tokenizer.decode(call.prompt[1:]) for call in server.generator.calls]
    assert asked[:2] == ["long", "short"]
    assert sorted(asked[2:]) == ["long", "short"]
    assert server.app.state.backend.running == 0


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"prompt": ["x"] * 129}, "prompt", "expected 1 to 128 prompts, got 129"),
        ({"prompt": []}, "prompt", "expected 1 to 128 prompts, got 0"),
        ({"prompt": ["x"] * 20, "n": 7}, "n", "must be in [1, 6] for 20 prompts, got 7"),
        ({"prompt": ["x", 3]}, "prompt[1]", "expected one string or one list of token ids"),
        ({"prompt": ["x", None]}, "prompt[1]", "got null"),
        ({"prompt": [[1], [1, 10**6]]}, "prompt[1]", "token ids in [0, "),
        ({"prompt": [3, "x"]}, "prompt", "(or 1 to 128 of these in a list)"),
        ({"prompt": [[[1]]]}, "prompt", "got [[1]]"),
        ({"prompt": ["x", "y " * 5000]}, "prompt[1]", "maximum context length"),
        ({"prompt": [[7], [7] * 4090, [7] * 4097]}, "prompt[2]", "maximum context length"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_wrong_prompt_is_named(
    serve: Converse, stream: bool, fields: dict[str, Any], param: str, said: str
) -> None:
    server = serve("x")
    response = server.request("POST", "/v1/completions", json={**fields, "stream": stream})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert said in error["message"]
    assert not server.generator.calls


def test_the_key_pays_for_every_prompt_once(saying: Server, serve: Converse, tmp_path: Path) -> None:
    keys = Keys.parse(["ann secret-of-ann requests=100 tokens=100000"])
    server = serve("1 2", settings={"keys": keys}, reused=1)
    backend = server.app.state.backend
    backend.ledger = Ledger(tmp_path / "usage.sqlite")
    headers = {"authorization": "Bearer secret-of-ann"}
    body = {"prompt": PROMPTS, "n": 2}
    usage = server.request("POST", "/v1/completions", json=body, headers=headers).json()["usage"]
    backend.ledger.close()
    (row,) = read_usage(tmp_path / "usage.sqlite")
    assert (row.requests, row.prompt, row.cached) == (1, usage["prompt_tokens"], 3)
    assert row.completion == usage["completion_tokens"]
    assert backend.metrics.prompt_tokens == usage["prompt_tokens"]
    account, _ = backend.admission.limits._account("ann")
    assert (account.tokens, len(account.starts), account.running) == (usage["total_tokens"], 6, 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("limit", "status", "param"), [("requests=2", 400, "prompt"), ("concurrent=2", 400, "prompt"), ("day=9", 429, None)]
)
def test_nothing_begins_beyond_the_limits_of_a_key(
    serve: Converse, limit: str, status: int, param: str | None, stream: bool
) -> None:
    server = serve("x", settings={"keys": Keys.parse([f"ann secret-of-ann {limit}"])})
    body = {"prompt": ["some words of a prompt"] * 3, "stream": stream}
    headers = {"authorization": "Bearer secret-of-ann"}
    response = server.request("POST", "/v1/completions", json=body, headers=headers)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)
    assert not server.generator.calls
    backend = server.app.state.backend
    account, _ = backend.admission.limits._account("ann")
    assert (account.running, backend.running) == (0, 0)
