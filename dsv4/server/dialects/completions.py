"""Text completions: continue prompts without any chat format, or fill the gap between prompt and suffix."""

from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Annotated, Any

from pydantic import Field

from dsv4.answer import Section, TokenRecord
from dsv4.encoding import ContentDelta, Tokenizer
from dsv4.server.backend import Backend
from dsv4.server.dialects.chat.reply import bytes_of, head
from dsv4.server.dialects.choices import MOST_CHOICES, ChoicesRun, Count, usage_of
from dsv4.server.dialects.fields import SamplingFields, between, checked, sampling_fields, token_ids_fit
from dsv4.server.dialects.job import AnswerJob, as_one, prepare_all
from dsv4.server.dialects.request import GenerationRequest, owner_name
from dsv4.server.guard.sizes import check_fits
from dsv4.server.wire.errors import ContextOverflow, invalid, naming_field, show
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
    """One text completion. echoes: of each choice, the prompt's text if the client wants it before the answer."""

    include_usage: bool
    echoes: Sequence[str]
    _texts: dict[int, TextEvents] = field(default_factory=dict)
    _offsets: Counter[int] = field(default_factory=Counter)

    async def complete(self) -> dict[str, Any]:
        """The whole answer as a `text_completion`."""
        choices = [
            self._choice(index, echo + job.answer.parsed.content, own, job.answer.finish_reason, job.tokens)
            for index, (echo, (job, own)) in enumerate(zip(self.echoes, await self.finished(), strict=True))
        ]
        return {**head(self.job, KIND), "choices": choices, "usage": usage_of(self.jobs)}

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The answer as events, closed by `[DONE]`; usage comes on the last."""
        told, last = [0] * len(self.jobs), 0
        for index, echo in enumerate(self.echoes):
            if echo:
                yield self._chunk(self._choice(index, echo, [], None))
        async with aclosing(self.steps()) as steps:
            async for last, step in steps:
                job = self.jobs[last]
                text = "".join([delta.text for delta in step.deltas if isinstance(delta, ContentDelta)])
                new, told[last] = job.tokens[told[last] :], len(job.tokens)
                if text and not step.logprobs and not job.request.plain:
                    yield self._text(last, text)
                elif text or (new and job.request.plain):
                    yield self._chunk(self._choice(last, text, step.logprobs, None, new))
                if self.more and job.answer.over and not self.over:
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
        logprobs = self._logprobs(index, records) if self.job.params.logprobs else None
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return {**choice, "token_ids": [*tokens]} if self.job.request.plain else choice

    def _logprobs(self, index: int, records: Sequence[TokenRecord]) -> dict[str, Any]:
        """The log-probabilities of a choice's next tokens; `text_offset` counts from the beginning of its text."""

        def text(token: int) -> str:
            return bytes_of(self.job.backend.tokenizer, token).decode(errors="replace")

        content = [record for record in records if record.section is Section.CONTENT]
        tokens = [text(record.token) for record in content]
        *offsets, self._offsets[index] = accumulate(map(len, tokens), initial=self._offsets[index])
        return {
            "tokens": tokens,
            "token_logprobs": [record.logprobs.chosen for record in content],
            "top_logprobs": [{text(token): value for token, value in record.logprobs.top} for record in content],
            "text_offset": offsets,
        }


def prepare_completion(body: object, backend: Backend, key: str) -> CompletionRun:
    """Check a decoded body and encode its prompts; key: the name of the client's key. Raises ApiError."""
    request = checked(CompletionRequest, body)
    request.check_stream()
    if request.echo and (request.suffix or request.logprobs is not None):
        raise invalid("echo", "not together with suffix or logprobs")
    if request.return_token_ids and (request.echo or request.stop):
        raise invalid(
            "return_token_ids", "not together with echo or stop: the answer is what the model says, token by token"
        )
    prompts = _prompts(request, backend)
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
        plain=bool(request.return_token_ids),
        answers=request.n or 1,
    )
    jobs: list[AnswerJob] = []
    for place, ids in prompts:
        with _naming_prompt(place):
            jobs += prepare_all(backend, replace(wanted, raw=tuple(ids)))
    job, *more = as_one(jobs, "n" if len(prompts) == 1 else "prompt")
    decode = backend.tokenizer.decode
    return CompletionRun(
        job,
        streaming=bool(request.stream),
        more=more,
        include_usage=request.wants_usage,
        echoes=[decode(ids[1:]) if request.echo else "" for _, ids in prompts for _ in range(wanted.answers)],
    )


def _prompts(request: CompletionRequest, backend: Backend) -> list[tuple[str, list[int]]]:
    """The place and the ids of each prompt. Raises ApiError naming the first wrong one."""
    given = request.prompt if isinstance(request.prompt, list) else [request.prompt]
    if given and isinstance(given[0], int):
        given = [given]
    count, answers = len(given), request.n or 1
    if not 1 <= count <= MOST_CHOICES:
        raise invalid("prompt", f"expected 1 to {MOST_CHOICES} prompts, got {count:,}")
    if count * answers > MOST_CHOICES:
        raise invalid("n", f"must be in [1, {MOST_CHOICES // count}] for {count} prompts, got {answers}")
    found: list[tuple[str, list[int]]] = []
    for index, prompt in enumerate(given):
        place = "prompt" if count == 1 else f"prompt[{index}]"
        with _naming_prompt(place):
            check_fits((prompt, request.suffix), backend.tokenizer.longest_token, backend.generator.context_length)
        found.append((place, _encoded(prompt, request.suffix, backend.tokenizer, place)))
    return found


@contextmanager
def _naming_prompt(place: str) -> Iterator[None]:
    """The error of a prompt that is too long names it."""
    try:
        yield
    except ContextOverflow as error:
        error.param = place
        raise


def _encoded(prompt: Any, suffix: str | None, tokenizer: Tokenizer, field: str) -> list[int]:
    """The ids of one prompt: a text, or ids with or without the begin token."""
    with naming_field("suffix" if suffix else field):
        if isinstance(prompt, str):
            ids = tokenizer.encode_text(prompt)
        elif token_ids_fit(prompt, tokenizer.vocab_size):
            ids = prompt
        else:
            several = f" (or 1 to {MOST_CHOICES} of these in a list)" if field == "prompt" else ""
            forms = f"one string{several} or one list of token ids in [0, {tokenizer.vocab_size})"
            raise invalid(field, f"expected {forms}, got {show(prompt)}")
        if not suffix:
            return ids if ids[:1] == [tokenizer.bos_id] else [tokenizer.bos_id, *ids]
        begin, hole, end = (tokenizer.token_id(token) for token in FIM_TOKENS)
        return [tokenizer.bos_id, begin, *ids, hole, *tokenizer.encode_text(suffix), end]
