"""The reply of Anthropic's messages: whole, or as a stream of blocks."""

import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from dsv4.encoding import ContentDelta, Delta, ReasoningDelta, ToolCallArguments, ToolCallEnd, ToolCallStart
from dsv4.server.backend import Backend
from dsv4.server.dialects.job import prepare
from dsv4.server.dialects.messages.context_editing import edit_context
from dsv4.server.dialects.messages.read import read_messages
from dsv4.server.dialects.messages.request import parse_messages
from dsv4.server.dialects.run import Run
from dsv4.server.wire.errors import ApiError
from dsv4.server.wire.sse import TextEvents, named_event

CALL_PREFIX = "toolu"
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}

BlockKind = Literal["thinking", "text", "tool_use"]


@dataclass(slots=True)
class MessagesRun(Run):
    """One message. The signature of its reasoning is a name without content; clients drop reasoning without one.
    edits: what context editing has cleared, None for a request without it."""

    edits: list[dict[str, Any]] | None = None
    signature: str = field(default_factory=lambda: uuid.uuid4().hex)
    _block: int = -1
    _open: BlockKind | None = None
    _started: bool = False
    _texts: TextEvents | None = None  # of the open block

    @property
    def id(self) -> str:
        return f"msg_{self.job.id.replace('-', '')}"

    async def complete(self) -> dict[str, Any]:
        """The whole answer as a `message`."""
        await self.job.collect()
        parsed = self.job.answer.parsed
        content: list[dict[str, Any]] = []
        if parsed.reasoning_content:
            content.append({"type": "thinking", "thinking": parsed.reasoning_content, "signature": self.signature})
        if parsed.content:
            content.append({"type": "text", "text": parsed.content})
        for index, call in enumerate(parsed.tool_calls):
            if call.complete:
                # the model's own text: parsing and writing a number may change it
                content.append(self._tool_use(index, call.name, msgspec.Raw(call.arguments.encode())))
        return {**self._head(), "content": content, **self._stop(), "usage": self._usage(), **self._edited()}

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The answer as named events."""
        yield self._start()
        async with aclosing(self.job.steps()) as steps:
            async for step in steps:
                for delta in step.deltas:
                    if chunk := self._delta(delta):
                        yield chunk
        yield self._close()
        yield named_event("message_delta", {"delta": self._stop(), "usage": self._usage(), **self._edited()})
        yield named_event("message_stop", {})

    def keep_alive(self) -> bytes:
        """A ping and an empty delta, because Claude Code gives up after ten minutes with pings only."""
        ping = named_event("ping", {})
        if not self._started:
            return ping
        opened = b""
        if self._open is None:
            opened = self._turn_to("thinking" if self.job.request.opens_thinking else "text")
        match self._open:
            case "thinking":
                return opened + self._block_delta({"type": "thinking_delta", "thinking": ""}) + ping
            case "text":
                return opened + self._block_delta({"type": "text_delta", "text": ""}) + ping
            case _:
                return opened + self._block_delta({"type": "input_json_delta", "partial_json": ""}) + ping

    def failed(self, error: ApiError) -> bytes:
        return named_event("error", error.anthropic_body())

    def _delta(self, delta: Delta) -> bytes:
        match delta:
            case ReasoningDelta(text):
                return self._turn_to("thinking") + self._text("thinking", text)
            case ContentDelta(text):
                return self._turn_to("text") + self._text("text", text)
            case ToolCallStart(index, name):
                return self._close() + self._begin("tool_use", self._tool_use(index, name, {}))
            case ToolCallArguments(_, text):
                return self._block_delta({"type": "input_json_delta", "partial_json": text})
            case ToolCallEnd():
                return self._close()

    def _text(self, kind: str, text: str) -> bytes:
        """More text of the open block."""
        if self._texts is None:
            self._texts = TextEvents(lambda text: self._block_delta({"type": f"{kind}_delta", kind: text}))
        return self._texts.event(text)

    def _turn_to(self, kind: Literal["thinking", "text"]) -> bytes:
        if self._open == kind:
            return b""
        empty = {"thinking": "", "signature": ""} if kind == "thinking" else {"text": ""}
        return self._close() + self._begin(kind, {"type": kind, **empty})

    def _begin(self, kind: BlockKind, block: Mapping[str, Any]) -> bytes:
        self._block += 1
        self._open, self._texts = kind, None
        start = named_event("content_block_start", {"index": self._block, "content_block": block})
        # the official service sends its first ping here
        return start + named_event("ping", {}) if self._block == 0 else start

    def _close(self) -> bytes:
        kind, self._open = self._open, None
        if kind is None:
            return b""
        stop = named_event("content_block_stop", {"index": self._block})
        if kind == "thinking":
            return self._block_delta({"type": "signature_delta", "signature": self.signature}) + stop
        return stop

    def _block_delta(self, delta: Mapping[str, Any]) -> bytes:
        return named_event("content_block_delta", {"index": self._block, "delta": delta})

    def _start(self) -> bytes:
        self._started = True
        head = {**self._head(), "content": [], "stop_reason": None, "stop_sequence": None, "usage": self._usage()}
        return named_event("message_start", {"message": head})

    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "model": self.job.request.model}

    def _tool_use(self, index: int, name: str, value: object) -> dict[str, Any]:
        return {"type": "tool_use", "id": self.job.call_id(index, CALL_PREFIX), "name": name, "input": value}

    def _stop(self) -> dict[str, Any]:
        found, finish = self.job.answer.stop_string, self.job.answer.finish_reason
        # a stop string in the text of a broken block must not hide that a call is unfinished
        if found is not None and finish == "stop":
            return {"stop_reason": "stop_sequence", "stop_sequence": found}
        return {"stop_reason": STOP_REASONS.get(finish, "end_turn"), "stop_sequence": None}

    def _edited(self) -> dict[str, Any]:
        return {} if self.edits is None else {"context_management": {"applied_edits": self.edits}}

    def _usage(self) -> dict[str, Any]:
        """Token counts so far; `input_tokens` leaves out the cached ones."""
        return {
            "input_tokens": len(self.job.prompt) - self.job.reused,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": self.job.reused,
            "output_tokens": self.job.answer.completion_tokens,
            "service_tier": "standard",
        }


def prepare_messages(body: Any, backend: Backend, key: str) -> MessagesRun:
    """Check a decoded body and encode its prompt; key: the name of the client's key. Raises ApiError."""
    request = parse_messages(body)
    model = backend.model_name if request.model is None else request.model
    wanted = read_messages(request, backend.tokenizer.dialect, model, key)
    edited = edit_context(wanted, request.context_management, backend.tokenizer)
    edits = None if request.context_management is None else edited.applied
    return MessagesRun(prepare(backend, edited.request), streaming=bool(request.stream), edits=edits)
