"""SGLang's protocol: `/generate` with token ids in and out (SGLang 0.5.23)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import msgspec

from dsv4.backends.protocol import RefusedError, ServerRequest
from dsv4.generation import FinishReason, RequestOptions, SamplingParams, TokenEvent, TokenLogprobs

# [log-probability, token id, text]
_Scored = tuple[float | None, int, str | None]


class _Finish(msgspec.Struct):
    type: str
    matched: int | str | list[int] | None = None
    message: str | None = None
    status_code: int | None = None


class _Meta(msgspec.Struct):
    completion_tokens: int = 0
    cached_tokens: int | None = None
    finish_reason: _Finish | None = None
    output_token_logprobs: list[_Scored] | None = None
    output_top_logprobs: list[list[_Scored] | None] | None = None


class _SglangChunk(msgspec.Struct):
    output_ids: list[int] | None = None
    meta_info: _Meta | None = None
    error: dict[str, Any] | None = None


_DECODER = msgspec.json.Decoder(_SglangChunk)


@dataclass(frozen=True, slots=True)
class Sglang:
    """Writes requests for an SGLang server and reads its answers.

    seeds: whether it uses seeds (`--enable-deterministic-inference`). priorities: whether it schedules by priority
    (`--enable-priority-scheduling`). grammars: the name of its grammar engine (`--grammar-backend`).
    """

    kind: ClassVar[str] = "sglang"
    path: ClassVar[str] = "/generate"
    seeds: bool = False
    priorities: bool = False
    grammars: str = "xgrammar"

    def check(self, params: SamplingParams, options: RequestOptions, grammars: Sequence[tuple[str, str]] = ()) -> None:
        """As in ServerProtocol."""
        if params.trace:
            raise ValueError("trace: an SGLang server tells nothing of what the model chooses inside")
        if params.seed is not None and params.temperature > 0 and not self.seeds:
            raise ValueError("seed: this SGLang server uses none: start it with --enable-deterministic-inference")
        if options.priority and not self.priorities:
            raise ValueError("priority: this SGLang server has none: start it with --enable-priority-scheduling")
        if params.logprobs and params.temperature not in (0, 1):
            raise ValueError(
                "logprobs: SGLang gives them at the temperature of the request; ask with temperature 0 or 1"
            )
        for kind, text in grammars:
            self._grammar(kind, text)

    def body(self, request: ServerRequest) -> bytes:
        """As in ServerProtocol."""
        params = request.params
        sampling: dict[str, Any] = {
            "max_new_tokens": request.most,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k or -1,
            "min_p": params.min_p,
            "presence_penalty": params.presence_penalty,
            "frequency_penalty": params.frequency_penalty,
            "repetition_penalty": 1.0,
            "ignore_eos": True,
            "stop_token_ids": list(request.stop_ids),
            "skip_special_tokens": False,
        }
        if request.bias:
            sampling["logit_bias"] = request.bias
        if request.seed is not None and self.seeds:
            sampling["sampling_seed"] = request.seed
        if (grammar := request.written_grammar()) is not None:
            sampling |= self._grammar(*grammar)
        fields: dict[str, Any] = {
            "input_ids": list(request.prompt),
            "sampling_params": sampling,
            "stream": True,
            "extra_key": request.owner_salt,
        }
        if params.logprobs:
            fields |= {"return_logprob": True, "top_logprobs_num": params.top_logprobs}
        if request.options.priority:
            fields["priority"] = request.options.priority
        if request.options.label:
            fields["rid"] = request.options.label
        return msgspec.json.encode(fields)

    def reader(self, request: ServerRequest) -> "SglangReader":
        """As in ServerProtocol."""
        return SglangReader(request)

    def _grammar(self, kind: str, text: str) -> dict[str, str]:
        if self.grammars == "none":
            raise ValueError(
                "constraint: this SGLang server has no grammars: start it with --grammar-backend llguidance"
            )
        if kind == "json":
            return {"json_schema": text}
        if self.grammars != "llguidance":
            raise ValueError(
                "constraint: tool calls and patterns need llguidance: start SGLang with --grammar-backend llguidance "
                f"(it has {self.grammars})"
            )
        return {"ebnf": text}


class SglangReader:
    """Reads one streamed answer. Lists hold all tokens so far or, with `--incremental-streaming-output`, the new ones:
    in both forms the new ones stand at the end, and `completion_tokens` tells how many there are."""

    def __init__(self, request: ServerRequest) -> None:
        self._request = request
        self._seen = 0
        self._over: list[TokenEvent] = []

    def feed(self, data: bytes) -> list[TokenEvent]:
        """As in Reader."""
        chunk = _DECODER.decode(data)
        if chunk.error is not None:
            raise RefusedError.of(chunk.error)
        meta, ids = chunk.meta_info, chunk.output_ids
        if meta is None or ids is None:
            raise ValueError("it gives no output_ids: it is no SGLang server of a version that we know")
        finish = meta.finish_reason
        if finish is not None and finish.type == "abort" and finish.status_code is not None:
            raise RefusedError(finish.status_code, finish.message or "aborted")
        new = meta.completion_tokens - self._seen
        if not 0 <= new <= len(ids):
            raise ValueError(f"it tells of {new} new tokens and sends {len(ids)}")
        events = [self._event(ids[place], place, meta) for place in range(-new, 0)]
        if events and not self._seen:
            events[0] = replace(events[0], reused=meta.cached_tokens)
        self._seen += new
        return events if finish is None else self._end(events, finish)

    def end(self) -> list[TokenEvent]:
        """As in Reader."""
        return []

    def _event(self, token: int, place: int, meta: _Meta) -> TokenEvent:
        if not self._request.params.logprobs:
            return TokenEvent(token)
        rows = meta.output_token_logprobs or []
        if len(rows) < -place or rows[place][1] != token or rows[place][0] is None:
            raise ValueError(f"it gives no log-probability of token {token}")
        top = meta.output_top_logprobs
        best = top[place] or [] if top and len(top) >= -place else []
        pairs = tuple((one, float(p)) for p, one, _ in best if p is not None)
        return TokenEvent(token, logprobs=TokenLogprobs(float(rows[place][0] or 0.0), pairs))

    def _end(self, events: list[TokenEvent], finish: _Finish) -> list[TokenEvent]:
        match finish.type:
            case "stop":
                if isinstance(finish.matched, int) and (not events or events[-1].token != finish.matched):
                    return [*events, TokenEvent(finish.matched, FinishReason.STOP)]  # it was cut off the list
                how: dict[str, Any] = {"finish": FinishReason.STOP}
            case "length":
                how = {"finish": FinishReason.LENGTH}
            case _:
                how = {"finish": FinishReason.ERROR, "error": f"the engine ended the answer: {finish.message}"}
        return [*events[:-1], replace(events[-1] if events else TokenEvent(None), **how)]
