"""A `TokenGenerator` over a server: text completions with token ids in and out (`return_token_ids`), by HTTP.

Standard library only, so a rollout worker needs nothing but this package. Traces do not travel: a server tells tokens
and log-probabilities.
"""

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from dsv4.backends.http import HttpClient, ServerLostError, check_key, split_url
from dsv4.generation import (
    BusyError,
    ContextLengthError,
    FinishReason,
    RequestOptions,
    SamplingParams,
    TokenEvent,
    TokenLogprobs,
)

__all__ = ["HttpGenerator", "ServerLostError"]


@dataclass(frozen=True, slots=True)
class HttpGenerator:
    """url: of the server, up to and without `/v1`. begin, end: ids of the tokens that begin every prompt and end an
    answer; the server adds the first itself. context_length: of its model. model: its name, None = whatever it serves.
    key: of the client. silence: seconds without a byte after which the server counts as lost."""

    url: str
    begin: int
    end: int
    context_length: int
    model: str | None = None
    key: str | None = None
    silence: float = 60.0

    def __post_init__(self) -> None:
        split_url(self.url)
        check_key(self.key)

    async def stream(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> AsyncGenerator[TokenEvent, None]:
        """As in TokenGenerator. Raises ServerLostError too. Closing it closes the connection, which stops the work."""
        body = self._body(prompt, params, options or RequestOptions())
        last: TokenEvent | None = None
        # NOTE: read to the end: a server counts an answer whose client leaves early as aborted
        async with aclosing(self._events(body)) as chunks:
            async for chunk in chunks:
                if "error" in chunk:
                    last = TokenEvent(None, FinishReason.ERROR, error=str(chunk["error"].get("message")))
                    break
                for event in _read(chunk["choices"][0]):
                    if event.token == self.end and self.end in params.stop_ids:
                        last = replace(event, finish=FinishReason.STOP)
                    elif event.finish is not None:
                        last = last or event
                    else:
                        yield event
        if last is None:
            raise ServerLostError(f"{self.url} ended an answer without a reason")
        yield last

    def _body(self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions) -> dict[str, Any]:
        if not prompt or prompt[0] != self.begin:
            raise ValueError(f"prompts of this server begin with token {self.begin}, got {list(prompt[:1])}")
        for name, unsupported in (
            ("trace", params.trace),
            ("constraint", params.constraint is not None),
            ("stop_ids", not set(params.stop_ids) <= {self.end}),
            ("deadline", options.deadline is not None),
            ("priority", options.priority != 0),
        ):
            if unsupported:
                raise ValueError(f"{name}: cannot be asked of a server")
        fields = {name: getattr(params, name) for name in _FIELDS}
        return {
            "prompt": list(prompt[1:]),
            "stream": True,
            "return_token_ids": True,
            "logprobs": params.top_logprobs if params.logprobs else None,
            "logit_bias": {str(token): value for token, value in params.logit_bias} or None,
            "user": options.owner or None,
            "model": self.model,
            **fields,
        }

    async def _events(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of an answer. Raises what the status says."""
        client = HttpClient(self.url, self.key, self.silence, keep=False)
        async with client.request("POST", "/v1/completions", json.dumps(body).encode()) as response:
            if response.status != 200:
                raise self._refusal(response.status, await response.body(), len(body["prompt"]) + 1)
            async with aclosing(response.lines()) as lines:
                async for line in lines:
                    if line.startswith(b"data: ") and line != b"data: [DONE]":
                        yield json.loads(line[6:])

    def _refusal(self, status: int, text: bytes, prompt: int) -> Exception:
        try:
            error = json.loads(text)["error"]
            message, code = str(error["message"]), error.get("code")
        except (ValueError, KeyError, TypeError):
            message, code = text[:200].decode(errors="replace"), None
        if status == 400 and code == "context_length_exceeded":
            return ContextLengthError(prompt, self.context_length)
        if status == 429:
            return BusyError(0)
        if status in (400, 401, 403, 404, 413, 422):
            return ValueError(f"{self.url} refuses: {message}")
        return ServerLostError(f"{self.url} answers {status}: {message}")


_FIELDS = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "seed")


def _read(choice: dict[str, Any]) -> list[TokenEvent]:
    """The events of one chunk; the end of the answer comes as an event of its own."""
    ids, scores = choice.get("token_ids"), choice.get("logprobs") or {}
    if ids is None:
        raise ServerLostError("the server gives no token ids: it does not know return_token_ids")
    values = scores.get("token_logprobs") or [None] * len(ids)
    events = [
        TokenEvent(token, logprobs=None if value is None else TokenLogprobs(value))
        for token, value in zip(ids, values, strict=True)
    ]
    match choice.get("finish_reason"):
        case None:
            pass
        case "stop":
            events.append(TokenEvent(None, FinishReason.STOP))
        case "length":
            events.append(TokenEvent(None, FinishReason.LENGTH))
        case other:
            events.append(TokenEvent(None, FinishReason.ABORT, error=f"the server ended the answer: {other}"))
    return events
