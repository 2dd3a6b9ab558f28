"""The reply of chat completions: whole, or as a stream of chunks."""

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from dsv4.answer import AnswerStep, Section, TokenRecord
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
from dsv4.server.dialects.choices import ChoicesRun, usage_of
from dsv4.server.dialects.job import AnswerJob, prepare_all
from dsv4.server.wire.sse import DONE, KEEP_ALIVE, TextEvents, event

FINGERPRINT = "fp_dsv4"
_TEXTS = (ContentDelta, ReasoningDelta)


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
class ChatRun(ChoicesRun):
    """One chat completion. tell_progress: the stream tells how far the prompt is; tell_timings: chunks and the whole
    answer have the speeds."""

    include_usage: bool
    tell_progress: bool = False
    tell_timings: bool = False
    _texts: dict[tuple[int, type[Delta]], TextEvents] = field(default_factory=dict)

    def keep_alive(self) -> bytes:
        """A comment, with the progress of the prompt if that is known."""
        progress = self.job.progress
        if progress is None or self.job.tokens:
            return KEEP_ALIVE
        return f": keep-alive, prompt {progress.done}/{progress.total} tokens\n\n".encode()

    async def complete(self) -> dict[str, Any]:
        """The whole answer as a `chat.completion`."""
        choices = [self._choice(index, *done) for index, done in enumerate(await self.finished())]
        answer = {**head(self.job, "chat.completion"), "choices": choices, "usage": usage_of(self.jobs)}
        return {**answer, "timings": timings(self.job)} if self.tell_timings else answer

    def _choice(self, index: int, job: AnswerJob, records: Sequence[TokenRecord]) -> dict[str, Any]:
        parsed = job.answer.parsed
        message: dict[str, Any] = {"role": "assistant", "content": parsed.content}
        if job.request.thinking:
            message["reasoning_content"] = parsed.reasoning_content
        calls = [
            {"index": at, **_call(job, at, call.name, call.arguments)}
            for at, call in enumerate(parsed.tool_calls)
            if call.complete
        ]
        if calls:
            message["tool_calls"] = calls
        logprobs = self._logprobs(records)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": job.answer.finish_reason}

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The answer as events, closed by `[DONE]`. Usage comes once, on the last chunk with a finish reason, as the
        official service sends it."""
        first: dict[str, Any] = {"role": "assistant", "content": ""}
        if self.job.request.thinking:
            first |= {"content": None, "reasoning_content": ""}
        for index in range(len(self.jobs)):
            yield self._chunk(index, first)
        told, last = None, 0
        async with aclosing(self.steps()) as steps:
            async for last, step in steps:
                if self.tell_progress and self.job.progress is not told:
                    told = self.job.progress
                    yield self._chunk(0, {}, progress=told)
                for chunk in self._step(last, step):
                    yield chunk
                if self.more and self.jobs[last].answer.over and not self.over:
                    yield self._finished(last)
        yield self._finished(last)
        yield DONE

    def _step(self, index: int, step: AnswerStep) -> Iterator[bytes]:
        records = step.logprobs
        for delta in step.deltas:
            if not records and isinstance(delta, _TEXTS) and not self.tell_timings:
                yield self._text(index, delta)
                continue
            body = self._delta(index, delta)
            if body is None:
                continue
            section = _section(delta)
            yield self._chunk(index, body, [record for record in records if record.section is section])
            # a later chunk of the same step must not repeat them
            records = [record for record in records if record.section is not section]

    def _text(self, index: int, delta: ContentDelta | ReasoningDelta) -> bytes:
        """The chunk of a text without log-probabilities."""
        kind = type(delta)
        events = self._texts.get((index, kind))
        if events is None:
            events = TextEvents(lambda text: self._chunk(index, self._delta(index, kind(text)) or {}))
            self._texts[index, kind] = events
        return events.event(delta.text)

    def _finished(self, index: int) -> bytes:
        last: dict[str, Any] = {"content": ""}
        if self.job.request.thinking:
            last["reasoning_content"] = None
        return self._chunk(index, last, finish=self.jobs[index].answer.finish_reason)

    def _delta(self, choice: int, delta: Delta) -> dict[str, Any] | None:
        match delta:
            case ReasoningDelta(text):
                return {"content": None, "reasoning_content": text}
            case ContentDelta(text):
                fields = {"content": text}
                return {**fields, "reasoning_content": None} if self.job.request.thinking else fields
            case ToolCallStart(index, name):
                return {"tool_calls": [{"index": index, **_call(self.jobs[choice], index, name, "")}]}
            case ToolCallArguments(index, text):
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
            case _:
                return None

    def _chunk(
        self,
        index: int,
        delta: Mapping[str, Any],
        records: Sequence[TokenRecord] = (),
        finish: str | None = None,
        progress: PromptProgress | None = None,
    ) -> bytes:
        logprobs = self._logprobs(records) if records else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        chunk = {**head(self.job, "chat.completion.chunk"), "choices": [choice]}
        if finish is not None and self.over:
            chunk["usage"] = usage_of(self.jobs)
        elif self.include_usage:
            chunk["usage"] = None
        if progress is not None:
            chunk["prompt_progress"] = prompt_progress(progress, self.job)
        if self.tell_timings and self.jobs[index].tokens:
            chunk["timings"] = timings(self.jobs[index])
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
    wanted = read_chat(request, backend.tokenizer.dialect, model, key)
    job, *more = prepare_all(backend, wanted)
    return ChatRun(
        job,
        streaming=bool(request.stream),
        more=more,
        include_usage=request.wants_usage,
        tell_progress=bool(request.return_progress),
        tell_timings=bool(request.timings_per_token),
    )


def _call(job: AnswerJob, index: int, name: str, arguments: str) -> dict[str, Any]:
    return {"id": job.call_id(index), "type": "function", "function": {"name": name, "arguments": arguments}}


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
