"""A model that always answers rightly, and a server around it: what `dsv4 verify` must find nothing wrong with."""

import asyncio
import json
import re
import zlib
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from dsv4.encoding import Tokenizer
from dsv4.generation import RequestOptions, SamplingParams, TokenEvent
from dsv4.server import Settings, create_app
from dsv4.testing.stub import StubGenerator
from tests.server.models import block

CITY = '{"city": "Rome", "people": 5}'


class PretendModel:
    """Every next token is a function of the tokens before it, so prefill and decode agree. Answers follow from the
    conversation: a call if a known question asks for one, JSON if a format asks for it, else words."""

    def __init__(self, tokenizer: Tokenizer, calls: dict[str, list[tuple[str, dict[str, Any]]]]) -> None:
        self.tokenizer, self.calls = tokenizer, calls
        self.block: Callable[..., str] = block  # how calls are written
        dialect = tokenizer.dialect
        self.header = tokenizer.token_id(dialect.assistant)
        self.opens, self.closes = (tokenizer.token_id(name) for name in ("<think>", "</think>"))
        pieces = {token: tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)}
        self.words = [token for token, data in pieces.items() if re.fullmatch(rb" [a-z]{3,}", data)]

    def __call__(self, prompt: Sequence[int], params: SamplingParams) -> list[int]:
        if self.header not in prompt:
            return self.free(prompt, params.max_tokens)
        place = len(prompt) - 1 - prompt[::-1].index(self.header)
        said, helped = list(prompt[place + 1 :]), params.constraint is not None  # a grammar lets no mistake through
        plan = self.plan(prompt[:place], thinking=said[:1] == [self.opens], write=block if helped else self.block)
        return plan[len(said) - 1 :]

    def free(self, prompt: Sequence[int], count: int) -> list[int]:
        """Words without an end."""
        state = zlib.crc32(repr(list(prompt)).encode())
        out: list[int] = []
        for _ in range(count):
            out.append(self.words[state % len(self.words)])
            state = zlib.crc32(repr([*prompt, *out]).encode())
        return out

    def plan(self, conversation: Sequence[int], *, thinking: bool, write: Callable[..., str]) -> list[int]:
        """The answer to a conversation, with calls as `write` writes them."""
        chance = zlib.crc32(repr(list(conversation)).encode())
        words = [self.words[(chance >> place % 16) * (place + 1) % len(self.words)] for place in range(48)]
        thought = [*words[40:46], self.closes] if thinking else []
        text = self.tokenizer.decode(conversation)
        known = [calls for asked, calls in self.calls.items() if asked in text]
        if known and known[0] and "## Tools" in text:
            answer = self.tokenizer.encode_text(write(*known[0]), trusted=True)
        elif "## Response Format" in text:
            answer = self.tokenizer.encode_text(CITY)
        else:
            answer = words[: 40 if "fifty" in text else 10 + chance % 20]
        return [*thought, *answer, self.tokenizer.eos_id]


class Counted(StubGenerator):
    """Knows how many answers run. together: so many begin at once, however slowly they come."""

    running = 0
    together = 1

    async def stream(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> AsyncGenerator[TokenEvent, None]:
        self.running += 1
        try:
            while self.running < self.together:
                await asyncio.sleep(0.001)
            self.together = 1
            async for event in super().stream(prompt, params, options):
                yield event
        finally:
            self.running -= 1


class PretendServer:
    """The application over a pretend model. Its generator's script may be changed to plant a fault."""

    def __init__(self, tokenizer: Tokenizer, calls: dict[str, list[tuple[str, dict[str, Any]]]]) -> None:
        self.model = PretendModel(tokenizer, calls)
        self.script: Any = self.model
        self.generator = Counted(lambda prompt, params: self.script(prompt, params), 8192)
        settings = Settings(max_requests=64, free_calls=True)  # the model makes mistakes
        self.app: Any = create_app(self.generator, tokenizer, model_name="pretend", settings=settings)


def changed_json(data: bytes, change: Any) -> bytes:
    """A body or event of JSON after a change."""
    return json.dumps(change(json.loads(data)), ensure_ascii=False).encode()
