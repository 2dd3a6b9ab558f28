"""Chat completions: one run of the generator, answered whole or as a stream of chunks."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from dsv4.answer import Answer, Section, TokenRecord
from dsv4.encoding import (
    ContentDelta,
    Delta,
    ReasoningDelta,
    Tokenizer,
    ToolCallArguments,
    ToolCallStart,
)
from dsv4.generation import SamplingDefaults, SamplingParams, TokenGenerator
from dsv4.server.answer import run
from dsv4.server.models import check_model
from dsv4.server.openai_request import parse_chat
from dsv4.server.prompt import ChatPrompt, chat_prompt, sampling
from dsv4.server.sse import DONE, event

FINGERPRINT = "fp_dsv4"


@dataclass(slots=True)
class ChatRun:
    """One chat completion, ready to run once: `complete` or `stream`.

    `answer` is filled while it runs, so `usage` and `answer.finish` can be read for the log at any time.
    """

    generator: TokenGenerator
    tokenizer: Tokenizer
    model: str
    chat: ChatPrompt
    prompt: list[int]
    params: SamplingParams
    answer: Answer
    streaming: bool
    include_usage: bool
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    created: int = field(default_factory=lambda: int(time.time()))

    def usage(self) -> dict[str, Any]:
        """Token counts so far. No prefix is shared between requests yet, so all of the prompt is a miss."""
        prompt, completion = len(self.prompt), self.answer.completion_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": self.answer.reasoning_tokens},
            "prompt_cache_hit_tokens": 0,
            "prompt_cache_miss_tokens": prompt,
        }

    async def complete(self) -> dict[str, Any]:
        """The whole answer as a `chat.completion`. Raises ApiError."""
        records: list[TokenRecord] = []
        async with aclosing(run(self.generator, self.prompt, self.params, self.answer)) as pieces:
            async for piece in pieces:
                records += piece.logprobs
        parsed = self.answer.parsed
        message: dict[str, Any] = {"role": "assistant", "content": parsed.content}
        if self.chat.thinking:
            message["reasoning_content"] = parsed.reasoning_content
        calls = [
            {"index": index, **tool_call(call.name, call.arguments, index)}
            for index, call in enumerate(parsed.tool_calls)
            if call.complete
        ]
        if calls:
            message["tool_calls"] = calls
        choice = {
            "index": 0,
            "message": message,
            "logprobs": self._logprobs(records),
            "finish_reason": self.answer.finish_reason,
        }
        return {**self._head("chat.completion"), "choices": [choice], "usage": self.usage()}

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events, closed by `[DONE]`. Raises ApiError, perhaps after some events.

        Usage comes once, on the chunk with the finish reason, as the official service sends it.
        """
        first: dict[str, Any] = {"role": "assistant", "content": ""}
        if self.chat.thinking:
            first |= {"content": None, "reasoning_content": ""}
        yield self._chunk(first)
        async with aclosing(run(self.generator, self.prompt, self.params, self.answer)) as pieces:
            async for piece in pieces:
                records = piece.logprobs
                for delta in piece.deltas:
                    body = self._delta(delta)
                    if body is None:
                        continue
                    section = _section(delta)
                    yield self._chunk(body, [record for record in records if record.section is section])
                    # a later chunk of the same piece must not repeat them
                    records = [record for record in records if record.section is not section]
        last: dict[str, Any] = {"content": ""}
        if self.chat.thinking:
            last["reasoning_content"] = None
        yield self._chunk(last, finish=self.answer.finish_reason)
        yield DONE

    def _delta(self, delta: Delta) -> dict[str, Any] | None:
        match delta:
            case ReasoningDelta(text):
                return {"content": None, "reasoning_content": text}
            case ContentDelta(text):
                fields = {"content": text}
                return {**fields, "reasoning_content": None} if self.chat.thinking else fields
            case ToolCallStart(index, name):
                return {"tool_calls": [{"index": index, **tool_call(name, "", index)}]}
            case ToolCallArguments(index, text):
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
            case _:
                return None

    def _chunk(self, delta: Mapping[str, Any], records: Sequence[TokenRecord] = (), finish: str | None = None) -> bytes:
        logprobs = self._logprobs(records) if records else None
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        chunk = {**self._head("chat.completion.chunk"), "choices": [choice]}
        if finish is not None:
            chunk["usage"] = self.usage()
        elif self.include_usage:
            chunk["usage"] = None
        return event(chunk)

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
        }

    def _logprobs(self, records: Sequence[TokenRecord]) -> dict[str, Any] | None:
        if not self.params.logprobs:
            return None
        entries: dict[str, Any] = {
            str(section): [_entry(self.tokenizer, record) for record in records if record.section is section]
            for section in (Section.CONTENT, Section.REASONING)
        }
        if not self.chat.thinking:
            del entries[Section.REASONING]
        return entries


async def prepare_chat(
    body: Mapping[str, Any],
    generator: TokenGenerator,
    tokenizer: Tokenizer,
    defaults: SamplingDefaults,
    *,
    model_name: str,
) -> ChatRun:
    """Check a decoded request body and encode its prompt. Raises ApiError; does not modify `body`."""
    request = parse_chat(body)
    model = model_name if request.model is None else request.model
    check_model(model, model_name)
    chat = chat_prompt(request, body, tokenizer.dialect)
    # a long conversation takes seconds to encode; other requests must not wait for it
    prompt = await asyncio.to_thread(chat.encode, tokenizer)
    params = sampling(request, prompt, generator.context_length, chat.default_tokens, tokenizer.eos_id, defaults)
    answer = Answer(tokenizer, thinking=chat.thinking, stops=request.stop, tools=chat.tools)
    options = request.stream_options
    return ChatRun(
        generator,
        tokenizer,
        model,
        chat,
        prompt,
        params,
        answer,
        streaming=bool(request.stream),
        include_usage=bool(options and options.include_usage),
    )


def tool_call(name: str, arguments: str, index: int) -> dict[str, Any]:
    """A tool call with a fresh id. Letters and digits only: some clients strip everything else."""
    return {
        "id": f"call{index:02d}{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _section(delta: Delta) -> Section | None:
    match delta:
        case ReasoningDelta():
            return Section.REASONING
        case ContentDelta():
            return Section.CONTENT
        case _:
            return None


def _entry(tokenizer: Tokenizer, record: TokenRecord) -> dict[str, Any]:
    top = [_token(tokenizer, token, logprob) for token, logprob in record.logprobs.top]
    return {**_token(tokenizer, record.token, record.logprobs.chosen), "top_logprobs": top}


def _token(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    # a model may have more rows than its tokenizer has tokens; such an alternative has no text
    raw = tokenizer.token_bytes(token) if token < tokenizer.vocab_size else b""
    return {"token": raw.decode("utf-8", errors="replace"), "logprob": logprob, "bytes": list(raw)}
