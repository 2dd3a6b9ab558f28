"""Text completions: continue a prompt without any chat format, or fill the gap between prompt and suffix."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Annotated, Any

from pydantic import Field

from dsv4.answer import Section, TokenRecord
from dsv4.encoding import ContentDelta, Tokenizer
from dsv4.server.backend import Backend
from dsv4.server.dialects.chat.reply import bytes_of, head
from dsv4.server.dialects.choices import ChoicesRun, Count, usage_of
from dsv4.server.dialects.fields import SamplingFields, between, checked, sampling_fields, token_ids_fit
from dsv4.server.dialects.job import prepare_all
from dsv4.server.dialects.request import GenerationRequest, owner_name
from dsv4.server.guard.sizes import check_fits
from dsv4.server.wire.errors import invalid, naming_field, show
from dsv4.server.wire.sse import DONE, TextEvents, event

KIND = "text_completion"
DEFAULT_TOKENS = 4096
FIM_TOKENS = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")


class CompletionRequest(SamplingFields):
    """The body of a text completion, checked."""

    prompt: Any
    suffix: str | None = None
    echo: bool | None = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    logprobs: Annotated[int | None, between(0, 20)] = None
    n: Count = None
    best_of: Annotated[int | None, between(1, 1)] = None
    return_token_ids: bool | None = None
    ignore_eos: bool | None = None


@dataclass(slots=True)
class CompletionRun(ChoicesRun):
    """One text completion. echo: the prompt's text, if the client wants it before the answer."""

    include_usage: bool
    echo: str
    _texts: dict[int, TextEvents] = field(default_factory=dict)

    async def complete(self) -> dict[str, Any]:
        """The whole answer as a `text_completion`."""
        choices = [
            self._choice(index, self.echo + job.answer.parsed.content, own, job.answer.finish_reason, job.tokens)
            for index, (job, own) in enumerate(await self.finished())
        ]
        return {**head(self.job, KIND), "choices": choices, "usage": usage_of(self.jobs)}

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The answer as events, closed by `[DONE]`; usage comes on the last."""
        told, last = [0] * len(self.jobs), 0
        if self.echo:
            for index in range(len(self.jobs)):
                yield self._chunk(self._choice(index, self.echo, [], None))
        async with aclosing(self.steps()) as steps:
            async for last, step in steps:
                job = self.jobs[last]
                text = "".join(delta.text for delta in step.deltas if isinstance(delta, ContentDelta))
                new, told[last] = job.tokens[told[last] :], len(job.tokens)
                if text and not step.logprobs and not job.request.plain:
                    yield self._text(last, text)
                elif text or (new and job.request.plain):
                    yield self._chunk(self._choice(last, text, step.logprobs, None, new))
                if job.answer.over and not self.over:
                    yield self._chunk(self._choice(last, "", [], job.answer.finish_reason))
        yield self._chunk(self._choice(last, "", [], self.jobs[last].answer.finish_reason))
        yield DONE

    def _text(self, index: int, text: str) -> bytes:
        """The chunk of a text without log-probabilities and ids."""
        events = self._texts.get(index)
        if events is None:
            events = self._texts[index] = TextEvents(lambda text: self._chunk(self._choice(index, text, [], None)))
        return events.event(text)

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        chunk = {**head(self.job, KIND), "choices": [choice]}
        if choice["finish_reason"] is not None and self.over:
            chunk["usage"] = usage_of(self.jobs)
        elif self.include_usage:
            chunk["usage"] = None
        return event(chunk)

    def _choice(
        self, index: int, text: str, records: Sequence[TokenRecord], finish: str | None, tokens: Sequence[int] = ()
    ) -> dict[str, Any]:
        logprobs = _logprobs(self.job.backend.tokenizer, records) if self.job.params.logprobs else None
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return {**choice, "token_ids": [*tokens]} if self.job.request.plain else choice


def prepare_completion(body: object, backend: Backend, key: str) -> CompletionRun:
    """Check a decoded body and encode its prompt; key: the name of the client's key. Raises ApiError."""
    request = checked(CompletionRequest, body)
    request.check_stream()
    if request.echo and (request.suffix or request.logprobs is not None):
        raise invalid("echo", "not together with suffix or logprobs")
    if request.return_token_ids and (request.echo or request.stop):
        raise invalid(
            "return_token_ids", "not together with echo or stop: the answer is what the model says, token by token"
        )
    texts = (request.prompt, *(request.prompt if isinstance(request.prompt, list) else ()), request.suffix)
    check_fits(texts, backend.tokenizer.longest_token, backend.generator.context_length)
    ids = _prompt(request, backend.tokenizer)
    wanted = GenerationRequest(
        model=request.model or backend.model_name,
        messages=[],
        thinking=False,
        limit=request.max_tokens or DEFAULT_TOKENS,
        ignore_eos=bool(request.ignore_eos),
        sampling=sampling_fields(request),
        stop=request.stop,
        logprobs=request.logprobs is not None,
        top_logprobs=request.logprobs or 0,
        owner=owner_name(key, request.user_id, request.user),
        key=key,
        raw=tuple(ids),
        plain=bool(request.return_token_ids),
        answers=request.n or 1,
    )
    job, *more = prepare_all(backend, wanted)
    return CompletionRun(
        job,
        streaming=bool(request.stream),
        more=more,
        include_usage=request.wants_usage,
        echo=backend.tokenizer.decode(ids[1:]) if request.echo else "",
    )


def _prompt(request: CompletionRequest, tokenizer: Tokenizer) -> list[int]:
    prompt = request.prompt
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]
    with naming_field("suffix" if request.suffix else "prompt"):
        if isinstance(prompt, str):
            ids = tokenizer.encode_text(prompt)
        elif token_ids_fit(prompt, tokenizer.vocab_size):
            ids = prompt
        else:
            ids_of = f"one list of token ids in [0, {tokenizer.vocab_size})"
            raise invalid("prompt", f"expected one string or {ids_of}, got {show(prompt)}")
        if not request.suffix:
            return ids if ids[:1] == [tokenizer.bos_id] else [tokenizer.bos_id, *ids]
        begin, hole, end = (tokenizer.token_id(token) for token in FIM_TOKENS)
        return [tokenizer.bos_id, begin, *ids, hole, *tokenizer.encode_text(request.suffix), end]


def _logprobs(tokenizer: Tokenizer, records: Sequence[TokenRecord]) -> dict[str, Any]:
    def text(token: int) -> str:
        return bytes_of(tokenizer, token).decode(errors="replace")

    content = [record for record in records if record.section is Section.CONTENT]
    tokens = [text(record.token) for record in content]
    offsets = [0, *accumulate(map(len, tokens))][: len(tokens)]
    return {
        "tokens": tokens,
        "token_logprobs": [record.logprobs.chosen for record in content],
        "top_logprobs": [{text(token): value for token, value in record.logprobs.top} for record in content],
        "text_offset": offsets,
    }
