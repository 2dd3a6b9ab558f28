"""The spans of one answer: the whole, its waiting, its prompt, its tokens, and each tool call that it wrote."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dsv4.answer import AnswerStep
from dsv4.encoding import ToolCallEnd, ToolCallStart
from dsv4.generation import TokenEvent
from dsv4.server.accounts.tracing import PROVIDER_NAME, Tracing
from dsv4.server.dialects.request import GenerationRequest
from dsv4.server.wire.names import short_name

if TYPE_CHECKING:
    from opentelemetry.trace import Span  # pyrefly: ignore[missing-import]  (an extra)

    from dsv4.server.dialects.job import AnswerJob


class AnswerSpans:
    """Records one answer. Without the content flag of `Tracing` no text of prompt or answer is kept."""

    def __init__(self, tracing: Tracing, span: Span, began: float) -> None:
        self._tracing, self._span, self._began = tracing, span, began
        self._admitted: float | None = None
        self._calls: dict[int, tuple[str, float]] = {}

    @classmethod
    def begin(
        cls, tracing: Tracing, job: AnswerJob, headers: Mapping[str, str], *, streaming: bool
    ) -> AnswerSpans | None:
        """The spans of an answer that begins; None if its trace is not kept."""
        model, operation = short_name(job.request.model), operation_of(job.request)
        attributes = {**request_attributes(job), "gen_ai.operation.name": operation, "gen_ai.request.stream": streaming}
        began = time.perf_counter() - job.seconds
        span = tracing.begin(f"{operation} {model}", attributes, headers, began)
        return None if span is None else cls(tracing, span, began)

    def saw(self, job: AnswerJob, event: TokenEvent, step: AnswerStep) -> None:
        """An event of the engine, and the parts of the answer that it made final."""
        progress = event.progress
        if self._admitted is None and progress is not None and progress.seconds is not None:
            self._admitted = max(self._began, time.perf_counter() - progress.seconds)
        for delta in step.deltas:
            match delta:
                case ToolCallStart(index, name):
                    self._calls[index] = name, time.perf_counter()
                case ToolCallEnd(index) if index in self._calls:
                    name, began = self._calls.pop(index)
                    told = {"gen_ai.tool.name": name, "gen_ai.tool.call.id": job.call_id(index)}
                    self._tracing.part(self._span, f"tool_call {name}", began, time.perf_counter(), told)
                case _:
                    pass

    def end(self, job: AnswerJob, error: str | None) -> None:
        """The answer is over. error: why it did not finish, None if it did."""
        now, first = time.perf_counter(), job.first_token_seconds
        admitted = self._admitted
        if admitted is not None:
            self._tracing.part(self._span, "queue", self._began, admitted)
            prompt = {"dsv4.prompt.computed_tokens": len(job.prompt) - job.reused}
            written = now if first is None else self._began + first
            self._tracing.part(self._span, "prefill", min(admitted, written), written, prompt)
        if first is not None:
            told = {"gen_ai.usage.output_tokens": job.answer.completion_tokens}
            self._tracing.part(self._span, "decode", self._began + first, now, told)
        told = answer_attributes(job, error)
        if self._tracing.content:
            told |= content_attributes(job)
        self._tracing.end(self._span, told, now, error)


def operation_of(request: GenerationRequest) -> str:
    """The name of the operation in the conventions."""
    return "chat" if request.raw is None else "text_completion"


def request_attributes(job: AnswerJob) -> dict[str, Any]:
    """What a request asks for, without its texts: stop strings are left out too."""
    request, params = job.request, job.params
    told = {
        "gen_ai.provider.name": PROVIDER_NAME,
        "gen_ai.request.model": short_name(request.model),
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.frequency_penalty": params.frequency_penalty,
        "gen_ai.request.presence_penalty": params.presence_penalty,
    }
    optional = {
        "gen_ai.request.top_k": params.top_k or None,
        "gen_ai.request.seed": params.seed,
        "gen_ai.request.choice.count": request.answers if request.answers > 1 else None,
        "gen_ai.request.reasoning.level": request.effort,
        "gen_ai.output.type": "json" if request.schema is not None or request.any_object else None,
    }
    return told | {name: value for name, value in optional.items() if value is not None}


def answer_attributes(job: AnswerJob, error: str | None) -> dict[str, Any]:
    """What came of it: counts and the reason of the end."""
    first = job.first_token_seconds
    told: dict[str, Any] = {
        "gen_ai.response.id": job.id,
        "gen_ai.response.model": job.backend.model_name,
        "gen_ai.response.finish_reasons": [str(job.answer.finish_reason) if error is None else error],
        "gen_ai.usage.input_tokens": len(job.prompt),
        "gen_ai.usage.cache_read.input_tokens": job.reused,
        "gen_ai.usage.output_tokens": job.answer.completion_tokens,
        "gen_ai.usage.reasoning.output_tokens": job.answer.reasoning_tokens,
    }
    return told if first is None else told | {"gen_ai.response.time_to_first_chunk": first}


def content_attributes(job: AnswerJob) -> dict[str, str]:
    """Prompt and answer as the conventions write them, JSON in text."""
    parsed, request = job.answer.parsed, job.request
    calls = [
        {"type": "tool_call", "id": job.call_id(at), "name": call.name, "arguments": call.arguments}
        for at, call in enumerate(parsed.tool_calls)
    ]
    parts = [*_said("reasoning", parsed.reasoning_content), *_said("text", parsed.content), *calls]
    answer = {"role": "assistant", "parts": parts, "finish_reason": str(job.answer.finish_reason)}
    given = [_message(message) for message in request.messages]
    return {
        "gen_ai.input.messages": json.dumps(given, ensure_ascii=False, default=str),
        "gen_ai.output.messages": json.dumps([answer], ensure_ascii=False, default=str),
    }


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    role, content = str(message.get("role")), message.get("content")
    if role == "tool":
        parts = [{"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content}]
        return {"role": role, "parts": parts}
    parts = [*_said("reasoning", message.get("reasoning_content")), *_said("text", content)]
    for call in message.get("tool_calls") or ():
        function = call.get("function", call)
        told = {"name": function.get("name"), "arguments": function.get("arguments")}
        parts.append({"type": "tool_call", "id": call.get("id"), **told})
    return {"role": role, "parts": parts}


def _said(kind: str, text: Any) -> list[dict[str, Any]]:
    return [{"type": kind, "content": text}] if text else []
