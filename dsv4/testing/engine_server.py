"""A server that speaks as vLLM and SGLang do, over any `TokenGenerator`, and fails as they do when it is told to.

It has what `dsv4.backends` asks of the two: their routes for tokens, models, health and limits. Fields that it does not
know are refused, so that a request that says too much is noticed.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from dsv4.generation import (
    BusyError,
    ConstraintFactory,
    FinishReason,
    SamplingParams,
    TokenEvent,
    TokenGenerator,
    TokenLogprobs,
)

VLLM_FIELDS = {
    "model", "prompt", "stream", "stream_options", "return_token_ids", "max_tokens", "temperature", "top_p", "top_k",
    "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "ignore_eos", "stop_token_ids",
    "cache_salt", "logit_bias", "seed", "logprobs", "return_tokens_as_token_ids", "priority", "request_id",
    "structured_outputs",
}  # fmt: skip
SGLANG_FIELDS = {
    "input_ids", "sampling_params", "stream", "extra_key", "return_logprob", "top_logprobs_num", "priority", "rid",
}  # fmt: skip
SGLANG_SAMPLING = {
    "max_new_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "ignore_eos", "stop_token_ids", "skip_special_tokens", "logit_bias", "sampling_seed",
    "json_schema", "ebnf",
}  # fmt: skip
# makes a grammar from its kind (json, lark) and its text
Compile = Callable[[str, str], ConstraintFactory]


@dataclass(slots=True)
class Faults:
    """What goes wrong. refuse: statuses of the next requests, in turn; 0 = the connection is cut before the status.
    die_after: the connection is cut after so many tokens. unhealthy: `/health` answers 503. junk: what is no JSON comes
    in place of a token."""

    refuse: list[int] = field(default_factory=list)
    die_after: int | None = None
    unhealthy: bool = False
    junk: bool = False


@dataclass(slots=True)
class EngineServer:
    """kind: whose protocol. model, tokenize: what it says of its model. key: that requests need. compile: its grammar
    engine, None = it has none. cumulative: SGLang's streams repeat all tokens. asked: the bodies of all requests;
    aborted: how many streams their client left."""

    generator: TokenGenerator
    kind: Literal["vllm", "sglang"]
    model: str = "deepseek-v4"
    tokenize: Callable[[str], Sequence[int]] | None = None
    key: str | None = None
    compile: Compile | None = None
    cumulative: bool = True
    info: Mapping[str, Any] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)
    asked: list[dict[str, Any]] = field(default_factory=list)
    aborted: int = 0

    def app(self) -> Callable[..., Awaitable[None]]:
        """The application, for uvicorn alone: faults need its connections."""
        routes = [
            Route("/v1/models", self._guarded(self._models)),
            Route("/health", self._health),
            Route("/tokenize", self._guarded(self._tokenize), methods=["POST"]),
        ]
        if self.kind == "vllm":
            routes += [
                Route("/version", self._version),
                Route("/v1/completions", self._guarded(self._generate), methods=["POST"]),
            ]
        else:
            routes += [
                Route("/server_info", self._guarded(self._server_info)),
                Route("/generate", self._guarded(self._generate), methods=["POST"]),
            ]
        inner = Starlette(routes=routes)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            # what ASGI has no word for: the method of uvicorn's object, which has the connection
            scope["cut"] = lambda: send.__self__.transport.abort()
            await inner(scope, receive, send)

        return app

    def _guarded(self, route: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def guarded(request: Request) -> Response:
            if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
                return JSONResponse({"error": "Unauthorized"}, 401)
            return await route(request)

        return guarded

    async def _models(self, request: Request) -> Response:
        card = {"id": self.model, "owned_by": self.kind, "max_model_len": self.generator.context_length}
        return JSONResponse({"object": "list", "data": [card]})

    async def _health(self, request: Request) -> Response:
        return Response(status_code=503 if self.faults.unhealthy else 200)

    async def _version(self, request: Request) -> Response:
        return JSONResponse({"version": "0.32.0"})

    async def _server_info(self, request: Request) -> Response:
        return JSONResponse({"version": "0.5.23", **self.info})

    async def _tokenize(self, request: Request) -> Response:
        if self.tokenize is None:
            return JSONResponse({"detail": "Not Found"}, 404)
        return JSONResponse({"tokens": list(self.tokenize((await request.json())["prompt"]))})

    async def _generate(self, request: Request) -> Response:
        body = await request.json()
        if self.kind == "vllm" and not body.get("stream"):
            return await self._trial(body)
        self.asked.append(body)
        if self.faults.refuse:
            status = self.faults.refuse.pop(0)
            if status:
                return JSONResponse({"error": {"message": f"refused with {status}", "code": status}}, status)
            request.scope["cut"]()
            return Response()
        try:
            prompt, params = (self._of_vllm if self.kind == "vllm" else self._of_sglang)(body)
            events = self.generator.stream(prompt, params)
            first = await anext(events)
        except BusyError as error:
            return JSONResponse({"error": {"message": str(error), "code": 503}}, 503)
        except (ValueError, KeyError) as error:
            return JSONResponse({"error": {"message": str(error), "code": 400}}, 400)
        stream = self._stream(body, first, events, request.scope["cut"])
        return StreamingResponse(stream, media_type="text/event-stream")

    async def _trial(self, body: dict[str, Any]) -> Response:
        """Whether a grammar in Lark compiles, which clients ask at the start. As in vLLM, one that does not is a
        failure of the server."""
        try:
            self._compiled("lark", body["structured_outputs"]["grammar"])
        except ValueError as error:
            return JSONResponse({"error": {"message": str(error), "code": 500}}, 500)
        return JSONResponse({"choices": [{"index": 0, "text": "x", "finish_reason": "length"}]})

    def _of_vllm(self, body: dict[str, Any]) -> tuple[list[int], SamplingParams]:
        _known(body, VLLM_FIELDS)
        grammar = body.get("structured_outputs") or {}
        [(kind, text)] = [*grammar.items()] or [("", "")]
        constraint = self._compiled({"grammar": "lark"}.get(kind, kind), text)
        params = _params(body, body["max_tokens"], constraint, seed=body.get("seed"))
        if (most := body.get("logprobs")) is not None:
            params = _with_logprobs(params, most)
        return body["prompt"], params

    def _of_sglang(self, body: dict[str, Any]) -> tuple[list[int], SamplingParams]:
        sampling = body["sampling_params"]
        _known(body, SGLANG_FIELDS)
        _known(sampling, SGLANG_SAMPLING)
        kind = next((name for name in ("json_schema", "ebnf") if name in sampling), "")
        constraint = self._compiled({"json_schema": "json", "ebnf": "lark"}.get(kind, ""), sampling.get(kind, ""))
        params = _params(sampling, sampling["max_new_tokens"], constraint, seed=sampling.get("sampling_seed"))
        if body.get("return_logprob"):
            params = _with_logprobs(params, body.get("top_logprobs_num", 0))
        return body["input_ids"], params

    def _compiled(self, kind: str, text: str) -> ConstraintFactory | None:
        if not kind:
            return None
        if self.compile is None:
            raise ValueError("this server has no grammars")
        return self.compile(kind, text)

    async def _stream(
        self, body: dict[str, Any], first: TokenEvent, events: AsyncIterator[TokenEvent], cut: Callable[[], None]
    ) -> AsyncGenerator[bytes, None]:
        done: list[TokenEvent] = []
        whole = False
        try:
            async with aclosing(_from(first, events)) as all_events:
                async for event in all_events:
                    if event.token is not None:
                        done.append(event)
                    if self.faults.junk:
                        yield b"data: {\n\n"
                    chunk = (
                        self._vllm_chunk(body["prompt"], done, event)
                        if self.kind == "vllm"
                        else self._sglang_chunk(done, event)
                    )
                    yield b"data: " + json.dumps(chunk).encode() + b"\n\n"
                    if self.faults.die_after is not None and len(done) >= self.faults.die_after:
                        whole = True
                        await asyncio.sleep(0.05)  # what was written leaves first
                        cut()
                        return
            if self.kind == "vllm":
                details = {"cached_tokens": next((e.reused for e in done if e.reused is not None), 0)}
                usage = {"prompt_tokens": len(body["prompt"]), "prompt_tokens_details": details}
                yield b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
            yield b"data: [DONE]\n\n"
            whole = True
        finally:
            self.aborted += not whole

    def _vllm_chunk(self, prompt: list[int], done: list[TokenEvent], event: TokenEvent) -> dict[str, Any]:
        """The first one repeats the prompt, as vLLM does with return_token_ids."""
        if event.finish is FinishReason.ERROR:
            return {"error": {"message": event.error, "type": "InternalServerError", "code": 500}}
        choice: dict[str, Any] = {
            "index": 0,
            "text": "",
            "token_ids": [] if event.token is None else [event.token],
            "finish_reason": None if event.finish is None else event.finish.value,
            "stop_reason": event.token if event.finish is FinishReason.STOP else None,
        }
        if len(done) <= 1:
            choice["prompt_token_ids"] = prompt
        if event.logprobs is not None:
            rows = {f"token_id:{event.token}": event.logprobs.chosen}
            rows |= {f"token_id:{token}": value for token, value in event.logprobs.top}
            choice["logprobs"] = {"token_logprobs": [event.logprobs.chosen], "top_logprobs": [rows]}
        return {"id": "cmpl", "object": "text_completion", "choices": [choice]}

    def _sglang_chunk(self, done: list[TokenEvent], event: TokenEvent) -> dict[str, Any]:
        shown = done if self.cumulative else done[-1:] if event.token is not None else []
        meta: dict[str, Any] = {
            "id": "0",
            "completion_tokens": len(done),
            "cached_tokens": next((e.reused for e in done if e.reused is not None), 0),
            "finish_reason": _sglang_finish(event),
        }
        told = [one.logprobs for one in shown if one.logprobs is not None]
        if told:
            meta["output_token_logprobs"] = [
                [logprobs.chosen, one.token, None] for one, logprobs in zip(shown, told, strict=True)
            ]
            meta["output_top_logprobs"] = [_rows(logprobs) for logprobs in told]
        return {"text": "", "output_ids": [one.token for one in shown], "meta_info": meta}


def _rows(logprobs: TokenLogprobs) -> list[list[Any]]:
    return [[value, token, None] for token, value in logprobs.top]


def _sglang_finish(event: TokenEvent) -> dict[str, Any] | None:
    match event.finish:
        case None:
            return None
        case FinishReason.STOP:
            return {"type": "stop", "matched": event.token}
        case FinishReason.LENGTH:
            return {"type": "length", "length": 0}
        case _:
            return {"type": "abort", "message": event.error, "status_code": None, "err_type": None}


def _known(body: Mapping[str, Any], names: set[str]) -> None:
    if unknown := sorted(body.keys() - names):
        raise ValueError(f"unknown field {unknown[0]}")


def _params(
    fields: Mapping[str, Any], most: int, constraint: ConstraintFactory | None, *, seed: int | None
) -> SamplingParams:
    if not fields["ignore_eos"] or fields["repetition_penalty"] != 1:
        raise ValueError("ignore_eos must be true, repetition_penalty 1")
    names = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty")
    return SamplingParams(
        max_tokens=most,
        top_k=max(0, fields["top_k"]),
        logit_bias=tuple((int(token), value) for token, value in fields.get("logit_bias", {}).items()),
        stop_ids=tuple(fields["stop_token_ids"]),
        constraint=constraint,
        seed=seed,
        **{name: fields[name] for name in names},
    )


def _with_logprobs(params: SamplingParams, most: int) -> SamplingParams:
    return replace(params, logprobs=True, top_logprobs=most)


async def _from(first: TokenEvent, events: AsyncIterator[TokenEvent]) -> AsyncGenerator[TokenEvent, None]:
    """The first event and those that follow; closing it closes them."""
    try:
        yield first
        async for event in events:
            yield event
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()
