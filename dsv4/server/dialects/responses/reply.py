"""The Responses interface: one job as output items, answered whole or as a stream of numbered events."""

import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from dsv4.answer import TokenRecord
from dsv4.encoding import ContentDelta, Delta, ReasoningDelta, ToolCallArguments, ToolCallEnd, ToolCallStart
from dsv4.server.backend import Backend
from dsv4.server.dialects.chat.reply import logprob_entry
from dsv4.server.dialects.job import Job, prepare
from dsv4.server.dialects.responses.custom_input import CustomInput, input_of
from dsv4.server.dialects.responses.read import read_responses
from dsv4.server.dialects.responses.request import ResponsesRequest, Tool, parse_responses, tools_of
from dsv4.server.dialects.responses.sealed import seal
from dsv4.server.wire.errors import ApiError
from dsv4.server.wire.sse import named_event

Event = tuple[str, dict[str, Any]]
PART_NAMES = {"reasoning": "reasoning_text", "message": "output_text"}


@dataclass(slots=True)
class ResponseRun:
    """One response, ready to run once: `complete` or `stream`.

    `output` holds the finished items; one item is open at a time. A call that was cut off is no finished item, since
    clients run what they are told is done.
    """

    job: Job
    request: ResponsesRequest
    tools: Mapping[str, Tool]
    streaming: bool
    output: list[dict[str, Any]] = field(default_factory=list)
    _item: dict[str, Any] | None = None
    _index: int = -1
    _number: int = -1

    async def complete(self) -> dict[str, Any]:
        """The whole response. Raises ApiError."""
        async with aclosing(self._events()) as events:
            async for _ in events:
                pass
        return self._response(self._status())

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The response as events. Raises ApiError, perhaps after some events."""
        for name in ("created", "in_progress"):
            yield self._wire(f"response.{name}", {"response": self._response("in_progress")})
        async with aclosing(self._events()) as events:
            async for name, fields in events:
                yield self._wire(name, fields)
        status = self._status()
        yield self._wire(f"response.{status}", {"response": self._response(status)})

    def keep_alive(self) -> bytes:
        """The event that keeps Codex waiting; it does not look at comments."""
        return self._wire("response.in_progress", {"response": self._response("in_progress")})

    def failed(self, error: ApiError) -> bytes:
        """The last event of a stream that fails."""
        problem = {"code": error.code or "server_error", "message": error.message}
        return self._wire("response.failed", {"response": {**self._response("failed"), "error": problem}})

    async def _events(self) -> AsyncGenerator[Event, None]:
        async with aclosing(self.job.pieces()) as pieces:
            async for piece in pieces:
                for delta in piece.deltas:
                    for event in self._delta(delta, piece.logprobs):
                        yield event
        if self._item is not None and self._item["type"] in PART_NAMES:
            for event in self._close():
                yield event

    def _delta(self, delta: Delta, records: Sequence[TokenRecord]) -> Iterator[Event]:
        match delta:
            case ReasoningDelta(text):
                yield from self._text("reasoning", text, [])
            case ContentDelta(text):
                yield from self._text("message", text, records)
            case ToolCallStart(index, name):
                if self._item is not None and self._item["type"] == "message":
                    self._item["phase"] = "commentary"  # the answer comes behind the call's result
                yield from self._close()
                yield from self._open(self._call_item(index, name))
            case ToolCallArguments(_, text):
                assert self._item is not None
                self._item["_arguments"] += text
                if self._item["type"] == "function_call":
                    yield self._at("response.function_call_arguments.delta", {"delta": text})
                elif new := self._item["_input"].feed(text):
                    self._item["input"] += new
                    yield self._at("response.custom_tool_call_input.delta", {"delta": new})
            case ToolCallEnd():
                yield from self._close()

    def _text(self, kind: str, text: str, records: Sequence[TokenRecord]) -> Iterator[Event]:
        if self._item is None or self._item["type"] != kind:
            if self._item is not None and self._item["type"] not in PART_NAMES:
                self._item = None  # a call that broke: it is never done
            yield from self._close()
            yield from self._open(_text_item(kind))
            yield self._at("response.content_part.added", {"content_index": 0, "part": _part(kind, "", [])})
        assert self._item is not None
        entries = [logprob_entry(self.job.backend.tokenizer, record) for record in records]
        self._item["_text"] += text
        self._item["_logprobs"] += entries
        extra = {"logprobs": entries} if kind == "message" else {}
        yield self._at(f"response.{PART_NAMES[kind]}.delta", {"content_index": 0, "delta": text, **extra})

    def _open(self, item: dict[str, Any]) -> Iterator[Event]:
        self._item = item
        self._index += 1
        yield "response.output_item.added", {"output_index": self._index, "item": _public(item)}

    def _close(self) -> Iterator[Event]:
        item = self._item
        if item is None:
            return
        item["status"] = "completed"
        match item["type"]:
            case "reasoning" | "message" as kind:
                part = _part(kind, item["_text"], item["_logprobs"])
                item["content"] = [part]
                if kind == "reasoning" and self.request.seals_reasoning:
                    item["encrypted_content"] = seal(item["_text"])
                extra = {"logprobs": item["_logprobs"]} if kind == "message" else {}
                fields = {"content_index": 0, "text": item["_text"], **extra}
                yield self._at(f"response.{PART_NAMES[kind]}.done", fields)
                yield self._at("response.content_part.done", {"content_index": 0, "part": part})
            case "function_call":
                item["arguments"] = item["_arguments"]
                fields = {"name": item["name"], "arguments": item["arguments"]}
                yield self._at("response.function_call_arguments.done", fields)
            case _:
                if not item["_input"].found:
                    item["input"] = input_of(item["_arguments"])
                    yield self._at("response.custom_tool_call_input.delta", {"delta": item["input"]})
                yield self._at("response.custom_tool_call_input.done", {"input": item["input"]})
        self._item = None
        self.output.append(_public(item))
        yield "response.output_item.done", {"output_index": self._index, "item": self.output[-1]}

    def _call_item(self, index: int, name: str) -> dict[str, Any]:
        tool = self.tools.get(name, Tool(name, name, {}))
        call = {"call_id": self.job.call_id(index), "name": tool.own, "status": "in_progress", "_arguments": ""}
        if tool.namespace is not None:
            call["namespace"] = tool.namespace
        if tool.custom:
            own = {"id": f"ctc_{uuid.uuid4().hex}", "input": "", "_input": CustomInput()}
            return {"type": "custom_tool_call", **call, **own}
        return {"type": "function_call", "id": f"fc_{uuid.uuid4().hex}", **call, "arguments": ""}

    def _at(self, name: str, fields: Mapping[str, Any]) -> Event:
        assert self._item is not None
        return name, {"item_id": self._item["id"], "output_index": self._index, **fields}

    def _wire(self, name: str, fields: Mapping[str, Any]) -> bytes:
        self._number += 1
        return named_event(name, {"sequence_number": self._number, **fields})

    def _status(self) -> str:
        return "incomplete" if self.job.answer.finish_reason in ("length", "aborted") else "completed"

    def _response(self, status: str) -> dict[str, Any]:
        request, job = self.request, self.job
        over = status in ("completed", "incomplete")
        return {
            "id": f"resp_{job.id.replace('-', '')}",
            "object": "response",
            "created_at": job.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": job.request.model,
            "output": list(self.output),
            "parallel_tool_calls": job.request.parallel,
            "previous_response_id": None,
            "reasoning": {"effort": job.request.effort or "none", "summary": None},
            "store": False,
            "temperature": job.params.temperature,
            "text": {"format": {"type": "text"}} if request.text is None else request.text.model_dump(by_alias=True),
            "tool_choice": request.tool_choice or "auto",
            "tools": request.tools or [],
            "top_p": job.params.top_p,
            "truncation": "disabled",
            "usage": self._usage() if over else None,
        }

    def _usage(self) -> dict[str, Any]:
        prompt, answer = len(self.job.prompt), self.job.answer
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": self.job.reused},
            "output_tokens": answer.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
            "total_tokens": prompt + answer.completion_tokens,
        }


def prepare_response(body: Any, backend: Backend, key: str) -> ResponseRun:
    """Check a decoded body and encode its prompt; `key` is the name of its key. Raises ApiError."""
    request = parse_responses(body)
    tools = tools_of(request, backend.tokenizer.dialect)
    model = request.model or backend.model_name
    job = prepare(backend, read_responses(request, tools, backend.tokenizer.dialect, model, key))
    return ResponseRun(job, request, tools, streaming=bool(request.stream))


def _text_item(kind: str) -> dict[str, Any]:
    own: dict[str, Any] = {"_text": "", "_logprobs": [], "content": [], "status": "in_progress"}
    if kind == "reasoning":
        return {"type": kind, "id": f"rs_{uuid.uuid4().hex}", "summary": [], "encrypted_content": None, **own}
    return {"type": kind, "id": f"msg_{uuid.uuid4().hex}", "role": "assistant", "phase": "final_answer", **own}


def _part(kind: str, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _public(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if not name.startswith("_")}
