"""Text completions: continue a prompt without any chat format, or fill the gap between prompt and suffix."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any

from pydantic import Field

from dsv4.answer import Section, TokenRecord
from dsv4.encoding import ContentDelta, Tokenizer
from dsv4.server.backend import Backend
from dsv4.server.dialects.chat.reply import bytes_of, head, usage_of
from dsv4.server.dialects.fields import SamplingFields, between, checked, sampling_fields, token_ids_fit
from dsv4.server.dialects.job import prepare
from dsv4.server.dialects.request import GenerationRequest, owner_name
from dsv4.server.dialects.run import Run
from dsv4.server.guard.sizes import check_fits
from dsv4.server.wire.errors import invalid, naming_field, show
from dsv4.server.wire.sse import DONE, event

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
    n: Annotated[int | None, between(1, 1)] = None
    best_of: Annotated[int | None, between(1, 1)] = None
    return_token_ids: bool | None = None


@dataclass(slots=True)
class CompletionRun(Run):
    """One text completion. echo: the prompt's text, if the client wants it before the answer."""

    include_usage: bool
    echo: str

    async def complete(self) -> dict[str, Any]:
        """The whole answer as a `text_completion`."""
        records = await self.job.collect()
        text = self.echo + self.job.answer.parsed.content
        choice = self._choice(text, records, self.job.answer.finish_reason, self.job.tokens)
        return {**head(self.job, KIND), "choices": [choice], "usage": usage_of(self.job)}

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The answer as events, closed by `[DONE]`; usage comes on the last."""
        usage, told = {"usage": None} if self.include_usage else {}, 0
        if self.echo:
            yield event({**head(self.job, KIND), "choices": [self._choice(self.echo, [], None)], **usage})
        async with aclosing(self.job.steps()) as steps:
            async for step in steps:
                text = "".join(delta.text for delta in step.deltas if isinstance(delta, ContentDelta))
                new, told = self.job.tokens[told:], len(self.job.tokens)
                if text or (new and self.job.request.plain):
                    choice = self._choice(text, step.logprobs, None, new)
                    yield event({**head(self.job, KIND), "choices": [choice], **usage})
        last = self._choice("", [], self.job.answer.finish_reason)
        yield event({**head(self.job, KIND), "choices": [last], "usage": usage_of(self.job)})
        yield DONE

    def _choice(
        self, text: str, records: Sequence[TokenRecord], finish: str | None, tokens: Sequence[int] = ()
    ) -> dict[str, Any]:
        logprobs = _logprobs(self.job.backend.tokenizer, records) if self.job.params.logprobs else None
        choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish}
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
        sampling=sampling_fields(request),
        stop=request.stop,
        logprobs=request.logprobs is not None,
        top_logprobs=request.logprobs or 0,
        owner=owner_name(key, request.user_id, request.user),
        key=key,
        raw=tuple(ids),
        plain=bool(request.return_token_ids),
    )
    return CompletionRun(
        prepare(backend, wanted),
        streaming=bool(request.stream),
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
            raise invalid("prompt", f"expected one string or one list of token ids, got {show(prompt)}")
        if not request.suffix:
            return [tokenizer.bos_id, *ids]
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
