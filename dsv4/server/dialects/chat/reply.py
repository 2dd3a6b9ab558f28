"""The reply of chat completions: whole, or as a stream of chunks."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from dsv4.answer import Section, TokenRecord
from dsv4.encoding import (
    ContentDelta,
    Delta,
    ReasoningDelta,
    Tokenizer,
    ToolCallArguments,
    ToolCallStart,
)
from dsv4.generation import PromptProgress
from dsv4.server.backend import Backend
from dsv4.server.dialects.chat.read import read_chat
from dsv4.server.dialects.chat.request import parse_chat
from dsv4.server.dialects.chat.timings import prompt_progress, timings
from dsv4.server.dialects.job import AnswerJob, prepare
from dsv4.server.dialects.run import Run
from dsv4.server.wire.sse import DONE, KEEP_ALIVE, event

FINGERPRINT = "fp_dsv4"


def usage_of(job: AnswerJob) -> dict[str, Any]:
    """Token counts so far, in the official form."""
    prompt, completion, reused = len(job.prompt), job.answer.completion_tokens, job.reused
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": reused},
        "completion_tokens_details": {"reasoning_tokens": job.answer.reasoning_tokens},
        "prompt_cache_hit_tokens": reused,
        "prompt_cache_miss_tokens": prompt - reused,
    }


def head(job: AnswerJob, kind: str) -> dict[str, Any]:
    """The first fields of every answer and chunk; kind: the type of the object."""
    return {
        "id": job.id,
        "object": kind,
        "created": job.created,
        "model": job.request.model,
        "system_fingerprint": FINGERPRINT,
    }


@dataclass(slots=True)
class ChatRun(Run):
    """One chat completion. tell_progress: the stream tells how far the prompt is; tell_timings: chunks and the whole
    answer have the speeds."""

    include_usage: bool
    tell_progress: bool = False
    tell_timings: bool = False

    def keep_alive(self) -> bytes:
        """A comment, with the progress of the prompt if that is known."""
        progress = self.job.progress
        if progress is None or self.job.tokens:
            return KEEP_ALIVE
        return f": keep-alive, prompt {progress.done}/{progress.total} tokens\n\n".encode()

    async def complete(self) -> dict[str, Any]:
        """The whole answer as a `chat.completion`."""
        records = await self.job.collect()
        parsed = self.job.answer.parsed
        message: dict[str, Any] = {"role": "assistant", "content": parsed.content}
        if self.job.request.thinking:
            message["reasoning_content"] = parsed.reasoning_content
        calls = [
            {"index": index, **self._call(index, call.name, call.arguments)}
            for index, call in enumerate(parsed.tool_calls)
            if call.complete
        ]
        if calls:
            message["tool_calls"] = calls
        choice = {
            "index": 0,
            "message": message,
            "logprobs": self._logprobs(records),
            "finish_reason": self.job.answer.finish_reason,
        }
        answer = {**head(self.job, "chat.completion"), "choices": [choice], "usage": usage_of(self.job)}
        return {**answer, "timings": timings(self.job)} if self.tell_timings else answer

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The answer as events, closed by `[DONE]`. Usage comes once, on the chunk with the finish reason, as the
        official service sends it."""
        first: dict[str, Any] = {"role": "assistant", "content": ""}
        if self.job.request.thinking:
            first |= {"content": None, "reasoning_content": ""}
        yield self._chunk(first)
        told = None
        async with aclosing(self.job.steps()) as steps:
            async for step in steps:
                if self.tell_progress and self.job.progress is not told:
                    told = self.job.progress
                    yield self._chunk({}, progress=told)
                records = step.logprobs
                for delta in step.deltas:
                    body = self._delta(delta)
                    if body is None:
                        continue
                    section = _section(delta)
                    yield self._chunk(body, [record for record in records if record.section is section])
                    # a later chunk of the same step must not repeat them
                    records = [record for record in records if record.section is not section]
        last: dict[str, Any] = {"content": ""}
        if self.job.request.thinking:
            last["reasoning_content"] = None
        yield self._chunk(last, finish=self.job.answer.finish_reason)
        yield DONE

    def _delta(self, delta: Delta) -> dict[str, Any] | None:
        match delta:
            case ReasoningDelta(text):
                return {"content": None, "reasoning_content": text}
            case ContentDelta(text):
                fields = {"content": text}
                return {**fields, "reasoning_content": None} if self.job.request.thinking else fields
            case ToolCallStart(index, name):
                return {"tool_calls": [{"index": index, **self._call(index, name, "")}]}
            case ToolCallArguments(index, text):
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
            case _:
                return None

    def _call(self, index: int, name: str, arguments: str) -> dict[str, Any]:
        function = {"name": name, "arguments": arguments}
        return {"id": self.job.call_id(index), "type": "function", "function": function}

    def _chunk(
        self,
        delta: Mapping[str, Any],
        records: Sequence[TokenRecord] = (),
        finish: str | None = None,
        progress: PromptProgress | None = None,
    ) -> bytes:
        logprobs = self._logprobs(records) if records else None
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        chunk = {**head(self.job, "chat.completion.chunk"), "choices": [choice]}
        if finish is not None:
            chunk["usage"] = usage_of(self.job)
        elif self.include_usage:
            chunk["usage"] = None
        if progress is not None:
            chunk["prompt_progress"] = prompt_progress(progress, self.job)
        if self.tell_timings and self.job.tokens:
            chunk["timings"] = timings(self.job)
        return event(chunk)

    def _logprobs(self, records: Sequence[TokenRecord]) -> dict[str, Any] | None:
        if not self.job.params.logprobs:
            return None
        entries: dict[str, Any] = {
            str(section): [
                logprob_entry(self.job.backend.tokenizer, record) for record in records if record.section is section
            ]
            for section in (Section.CONTENT, Section.REASONING)
        }
        if not self.job.request.thinking:
            del entries[Section.REASONING]
        return entries


def prepare_chat(body: Mapping[str, Any], backend: Backend, key: str) -> ChatRun:
    """Check a decoded body and encode its prompt; key: the name of the client's key. Raises ApiError. Does not modify
    `body`."""
    request = parse_chat(body)
    model = backend.model_name if request.model is None else request.model
    job = prepare(backend, read_chat(request, backend.tokenizer.dialect, model, key))
    return ChatRun(
        job,
        streaming=bool(request.stream),
        include_usage=request.wants_usage,
        tell_progress=bool(request.return_progress),
        tell_timings=bool(request.timings_per_token),
    )


def _section(delta: Delta) -> Section | None:
    match delta:
        case ReasoningDelta():
            return Section.REASONING
        case ContentDelta():
            return Section.CONTENT
        case _:
            return None


def logprob_entry(tokenizer: Tokenizer, record: TokenRecord) -> dict[str, Any]:
    """The log-probabilities of one token, in OpenAI's form."""
    top = [_token(tokenizer, token, logprob) for token, logprob in record.logprobs.top]
    return {**_token(tokenizer, record.token, record.logprobs.chosen), "top_logprobs": top}


def bytes_of(tokenizer: Tokenizer, token: int) -> bytes:
    """The bytes of a token; none for an id without a token, since a model may have more rows than its tokenizer."""
    return tokenizer.token_bytes(token) if token < tokenizer.vocab_size else b""


def _token(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    raw = bytes_of(tokenizer, token)
    return {"token": raw.decode("utf-8", errors="replace"), "logprob": logprob, "bytes": list(raw)}
