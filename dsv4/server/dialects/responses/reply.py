"""The reply of the Responses interface: output items, whole or as a stream of numbered events."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from dsv4.answer import TokenRecord
from dsv4.encoding import ContentDelta, Delta, ReasoningDelta, ToolCallArguments, ToolCallEnd, ToolCallStart
from dsv4.server.backend import Backend
from dsv4.server.dialects.chat.reply import logprob_entry
from dsv4.server.dialects.job import prepare
from dsv4.server.dialects.responses.custom_input import CustomInput, input_of
from dsv4.server.dialects.responses.read import read_responses
from dsv4.server.dialects.responses.request import PromptTool, ResponsesRequest, parse_responses, tools_of
from dsv4.server.dialects.responses.sealed import seal
from dsv4.server.dialects.responses.stored import resolved
from dsv4.server.dialects.run import Run
from dsv4.server.storage.responses import StoredResponses
from dsv4.server.wire.errors import ApiError
from dsv4.server.wire.sse import named_event

Event = tuple[str, dict[str, Any]]
PART_NAMES = {"reasoning": "reasoning_text", "message": "output_text"}


@dataclass(slots=True)
class ResponseRun(Run):
    """One response. `output` holds the finished items; one item is open at a time.

    A call that was cut off is no finished item, because clients execute finished calls. inputs: the items that the
    client sent, which are stored with the response. store: where it is stored, None for one that is not.
    """

    request: ResponsesRequest
    tools: Mapping[str, PromptTool]
    inputs: Sequence[dict[str, Any]] = ()
    store: StoredResponses | None = None
    output: list[dict[str, Any]] = field(default_factory=list)
    _item: "_OpenItem | None" = None
    _calls: dict[int, "_OpenItem"] = field(default_factory=dict)
    _index: int = -1
    _number: int = -1

    async def complete(self) -> dict[str, Any]:
        async with aclosing(self._events()) as events:
            async for _ in events:
                pass
        return await self._finished()

    async def stream(self) -> AsyncGenerator[bytes, None]:
        for name in ("created", "in_progress"):
            yield self._wire(f"response.{name}", {"response": self._response("in_progress")})
        async with aclosing(self._events()) as events:
            async for name, fields in events:
                yield self._wire(name, fields)
        response = await self._finished()
        yield self._wire(f"response.{response['status']}", {"response": response})

    def keep_alive(self) -> bytes:
        """An event that keeps Codex waiting, because Codex ignores comments."""
        return self._wire("response.in_progress", {"response": self._response("in_progress")})

    def failed(self, error: ApiError) -> bytes:
        problem = {"code": error.code or "server_error", "message": error.message}
        return self._wire("response.failed", {"response": {**self._response("failed"), "error": problem}})

    async def _events(self) -> AsyncGenerator[Event, None]:
        async with aclosing(self.job.steps()) as steps:
            async for step in steps:
                for delta in step.deltas:
                    for event in self._delta(delta, step.logprobs):
                        yield event
        if self._item is not None and self._item.kind in PART_NAMES:
            for event in self._close():
                yield event

    def _delta(self, delta: Delta, records: Sequence[TokenRecord]) -> Iterator[Event]:
        match delta:
            case ReasoningDelta(text):
                yield from self._text("reasoning", text, [])
            case ContentDelta(text):
                yield from self._text("message", text, records)
            case ToolCallStart(index, name):
                if self._item is not None and self._item.kind == "message":
                    self._item.fields["phase"] = "commentary"  # the answer follows the call's result
                yield from self._close()
                self._calls[index] = item = self._open(*self._call_fields(index, name))
                yield item.added()
            case ToolCallArguments(index, text):
                item = self._calls[index]
                item.text += text
                if item.custom is None:
                    yield item.event("response.function_call_arguments.delta", {"delta": text})
                elif new := item.custom.feed(text):
                    item.fields["input"] += new
                    yield item.event("response.custom_tool_call_input.delta", {"delta": new})
            case ToolCallEnd():
                yield from self._close()

    def _text(self, kind: str, text: str, records: Sequence[TokenRecord]) -> Iterator[Event]:
        item = self._item
        if item is None or item.kind != kind:
            if item is not None and item.kind not in PART_NAMES:
                self._item = None  # a broken call is never completed
            yield from self._close()
            item = self._open(_text_fields(kind))
            yield item.added()
            yield item.event("response.content_part.added", {"content_index": 0, "part": _part(kind, "", [])})
        entries = [logprob_entry(self.job.backend.tokenizer, record) for record in records]
        item.text += text
        item.logprobs += entries
        extra = {"logprobs": entries} if kind == "message" else {}
        yield item.event(f"response.{PART_NAMES[kind]}.delta", {"content_index": 0, "delta": text, **extra})

    def _open(self, fields: dict[str, Any], custom: CustomInput | None = None) -> "_OpenItem":
        self._index += 1
        self._item = item = _OpenItem(self._index, fields, custom)
        return item

    def _close(self) -> Iterator[Event]:
        item = self._item
        if item is None:
            return
        fields, text = item.fields, item.text
        fields["status"] = "completed"
        match item.kind:
            case "reasoning" | "message" as kind:
                part = _part(kind, text, item.logprobs)
                fields["content"] = [part]
                if kind == "reasoning" and self.request.seals_reasoning:
                    fields["encrypted_content"] = seal(text)
                extra = {"logprobs": item.logprobs} if kind == "message" else {}
                yield item.event(f"response.{PART_NAMES[kind]}.done", {"content_index": 0, "text": text, **extra})
                yield item.event("response.content_part.done", {"content_index": 0, "part": part})
            case "function_call":
                fields["arguments"] = text
                done = {"name": fields["name"], "arguments": text}
                yield item.event("response.function_call_arguments.done", done)
            case _:
                if item.custom is None or not item.custom.found:
                    fields["input"] = input_of(text)
                    yield item.event("response.custom_tool_call_input.delta", {"delta": fields["input"]})
                yield item.event("response.custom_tool_call_input.done", {"input": fields["input"]})
        self._item = None
        self.output.append(fields)
        yield "response.output_item.done", {"output_index": item.index, "item": fields}

    def _call_fields(self, index: int, name: str) -> tuple[dict[str, Any], CustomInput | None]:
        tool = self.tools.get(name, PromptTool(name, name, {}))
        call = {"call_id": self.job.call_id(index), "name": tool.own, "status": "in_progress"}
        if tool.namespace is not None:
            call["namespace"] = tool.namespace
        if tool.custom:
            return {"type": "custom_tool_call", **call, "id": f"ctc_{uuid.uuid4().hex}", "input": ""}, CustomInput()
        return {"type": "function_call", "id": f"fc_{uuid.uuid4().hex}", **call, "arguments": ""}, None

    def _wire(self, name: str, fields: Mapping[str, Any]) -> bytes:
        self._number += 1
        return named_event(name, {"sequence_number": self._number, **fields})

    async def _finished(self) -> dict[str, Any]:
        """The whole response, which is stored if the client wants that. Raises ApiError if it cannot be stored: a
        client that gets its id would rely on it."""
        response = self._response(self._status())
        if self.store is not None:
            await asyncio.to_thread(self.store.save, self.job.request.key, response, self.inputs)
        return response

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
            "previous_response_id": request.previous_response_id,
            "reasoning": {"effort": job.request.effort or "none", "summary": None},
            "store": self.store is not None,
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
    """Check a decoded body and encode its prompt; key: the name of the client's key. Raises ApiError."""
    request, dialect = parse_responses(body), backend.tokenizer.dialect
    store = backend.responses
    whole = resolved(request, store, key)
    # OpenAI stores a response unless the client refuses
    if request.store is False:
        store = None
    if store is not None:
        store.check_room()
    tools = tools_of(request, dialect)
    model = request.model or backend.model_name
    job = prepare(backend, read_responses(whole.request, tools, dialect, model, key))
    return ResponseRun(job, bool(request.stream), request, tools, whole.own, store)


@dataclass(slots=True)
class _OpenItem:
    """An output item that is being generated. fields: those of its JSON object; text: of the item, or the arguments of
    its call; custom: reads the input of a custom tool's call."""

    index: int
    fields: dict[str, Any]
    custom: CustomInput | None = None
    text: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return self.fields["type"]

    def added(self) -> Event:
        return "response.output_item.added", {"output_index": self.index, "item": self.fields}

    def event(self, name: str, fields: Mapping[str, Any]) -> Event:
        return name, {"item_id": self.fields["id"], "output_index": self.index, **fields}


def _text_fields(kind: str) -> dict[str, Any]:
    if kind == "reasoning":
        own = {"id": f"rs_{uuid.uuid4().hex}", "summary": [], "encrypted_content": None}
    else:
        own = {"id": f"msg_{uuid.uuid4().hex}", "role": "assistant", "phase": "final_answer"}
    return {"type": kind, **own, "content": [], "status": "in_progress"}


def _part(kind: str, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
