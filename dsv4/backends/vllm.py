"""vLLM's protocol: `/v1/completions` with token ids in and out (vLLM 0.32, `return_token_ids`).

`/inference/v1/generate` is its leaner route for tokens, but servers have it only with `--enable-scale-out`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import msgspec

from dsv4.backends.protocol import RefusedError, ServerRequest
from dsv4.generation import FinishReason, RequestOptions, SamplingParams, TokenEvent, TokenLogprobs

# how vLLM names token ids in log-probabilities, with return_tokens_as_token_ids
_NAMED = "token_id:"
# before a grammar in Lark: "no options" to llguidance, and refused by xgrammar, which reads a Lark of its own; so a
# server with --structured-outputs-config.backend auto takes llguidance
_ONLY_LLGUIDANCE = "%llguidance {}\n"


class _Logprobs(msgspec.Struct):
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(msgspec.Struct):
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _CachedTokens(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens_details: _CachedTokens | None = None


class _VllmChunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: dict[str, Any] | None = None


_DECODER = msgspec.json.Decoder(_VllmChunk)


class Vllm:
    """Writes requests for a vLLM server and reads its answers. model: the name that it serves. lark: whether its
    grammar engine is llguidance, which `trial` finds out."""

    kind: ClassVar[str] = "vllm"
    path: ClassVar[str] = "/v1/completions"

    def __init__(self, model: str, *, lark: bool = True) -> None:
        self._model, self.lark = model, lark

    def check(self, params: SamplingParams, options: RequestOptions, grammars: Sequence[tuple[str, str]] = ()) -> None:
        """As in ServerProtocol."""
        if params.trace:
            raise ValueError("trace: a vLLM server tells nothing of what the model chooses inside")
        if not self.lark and any(kind == "lark" for kind, _ in grammars):
            raise ValueError(
                "constraint: tool calls and patterns need llguidance: start vLLM with "
                "--structured-outputs-config.backend guidance"
            )

    def trial(self) -> bytes:
        """The JSON of a request of one token under a grammar in Lark. A server keeps the grammar engine of the first
        grammar that it gets: with `auto` this one makes it llguidance, unless it had a JSON schema before."""
        fields = {"model": self._model, "prompt": [0], "max_tokens": 1, "temperature": 0.0}
        return msgspec.json.encode(fields | {"structured_outputs": {"grammar": _ONLY_LLGUIDANCE + 'start: "x"'}})

    def body(self, request: ServerRequest) -> bytes:
        """As in ServerProtocol."""
        params = request.params
        fields: dict[str, Any] = {
            "model": self._model,
            "prompt": list(request.prompt),
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "max_tokens": request.most,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "min_p": params.min_p,
            "presence_penalty": params.presence_penalty,
            "frequency_penalty": params.frequency_penalty,
            "repetition_penalty": 1.0,
            # only the given tokens end the answer
            "ignore_eos": True,
            "stop_token_ids": list(request.stop_ids),
            "cache_salt": request.owner_salt,
        }
        if request.bias:
            fields["logit_bias"] = request.bias
        if request.seed is not None:
            fields["seed"] = request.seed
        if params.logprobs:
            fields |= {"logprobs": params.top_logprobs, "return_tokens_as_token_ids": True}
        if request.options.priority:
            fields["priority"] = -request.options.priority  # there the lowest goes first
        if request.options.label:
            fields["request_id"] = request.options.label
        if (grammar := request.written_grammar()) is not None:
            kind, text = grammar
            fields["structured_outputs"] = {"json": text} if kind == "json" else {"grammar": _ONLY_LLGUIDANCE + text}
        return msgspec.json.encode(fields)

    def reader(self, request: ServerRequest) -> "VllmReader":
        """As in ServerProtocol."""
        return VllmReader(request)


class VllmReader:
    """Reads one streamed answer. The event that ends it is kept until the usage behind it is known."""

    def __init__(self, request: ServerRequest) -> None:
        self._request = request
        self._last: TokenEvent | None = None

    def feed(self, data: bytes) -> list[TokenEvent]:
        """As in Reader."""
        chunk = _DECODER.decode(data)
        if chunk.error is not None:
            raise RefusedError.of(chunk.error)
        if chunk.usage is not None and chunk.usage.prompt_tokens_details is not None and self._last is not None:
            self._last = replace(self._last, reused=chunk.usage.prompt_tokens_details.cached_tokens)
        return self._events(chunk.choices[0]) if chunk.choices else []

    def end(self) -> list[TokenEvent]:
        """As in Reader."""
        return [self._last] if self._last is not None else []

    def _events(self, choice: _Choice) -> list[TokenEvent]:
        if choice.token_ids is None:
            raise ValueError("it gives no token ids: it does not know return_token_ids (vLLM 0.11 and later do)")
        events = [
            TokenEvent(token, logprobs=self._logprobs(token, place, choice.logprobs))
            for place, token in enumerate(choice.token_ids)
        ]
        if choice.finish_reason is not None:
            self._last = _ended(events.pop() if events else TokenEvent(None), choice.finish_reason)
        return events

    def _logprobs(self, token: int, place: int, told: _Logprobs | None) -> TokenLogprobs | None:
        if not self._request.params.logprobs:
            return None
        value = told.token_logprobs[place] if told is not None and place < len(told.token_logprobs) else None
        if value is None:
            raise ValueError(f"it gives no log-probability of token {token}")
        top = (told.top_logprobs or [None] * (place + 1))[place] if told is not None else None
        rows = sorted(((int(name.removeprefix(_NAMED)), p) for name, p in (top or {}).items()), key=lambda row: -row[1])
        return TokenLogprobs(value, tuple(rows[: self._request.params.top_logprobs]))


def _ended(event: TokenEvent, reason: str) -> TokenEvent:
    match reason:
        case "stop":
            return replace(event, finish=FinishReason.STOP)
        case "length":
            return replace(event, finish=FinishReason.LENGTH)
        case _:
            return replace(event, finish=FinishReason.ERROR, error=f"the engine ended the answer: {reason}")
