"""One request to a server in our words, and what a protocol makes of it; `vllm.py` and `sglang.py` are two."""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

from dsv4.generation import (
    LOWEST_BIAS,
    ConstraintFactory,
    RequestOptions,
    SamplingParams,
    TokenEvent,
    WrittenGrammar,
)


class RefusedError(Exception):
    """The back end refused the request with this status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    @classmethod
    def of(cls, error: Mapping[str, Any]) -> Self:
        """The error object of a stream that had begun with status 200."""
        status = error.get("code")
        return cls(status if isinstance(status, int) else 500, str(error.get("message", "no reason given")))


@dataclass(frozen=True, slots=True)
class ServerRequest:
    """What one request asks for. most: the largest number of tokens. stop_ids: tokens that end it. banned: tokens that
    it cannot hold. grammar: what it follows. Everything else is as in `params` and `options`, seed excepted."""

    prompt: Sequence[int]
    params: SamplingParams
    options: RequestOptions
    most: int
    stop_ids: tuple[int, ...]
    banned: tuple[int, ...] = ()
    grammar: ConstraintFactory | None = None
    seed: int | None = None

    @property
    def bias(self) -> dict[str, float]:
        """The logit bias by token id as JSON has it, banned tokens included."""
        found = {str(token): float(value) for token, value in self.params.logit_bias}
        return found | {str(token): LOWEST_BIAS for token in self.banned}

    @property
    def owner_salt(self) -> str:
        """What keeps the cached prefixes of one owner from others, and those of a request that keeps none from all."""
        if not self.options.keep:
            return secrets.token_hex(16)
        return hashlib.sha256(b"dsv4 owner " + self.options.owner.encode()).hexdigest()

    def once_more(self, number: int) -> "ServerRequest":
        """The same request under another label: a server may still know the first one."""
        label = self.options.label and f"{self.options.label.partition('~')[0]}~{number}"
        return replace(self, options=replace(self.options, label=label))

    def written_grammar(self) -> tuple[str, str] | None:
        """The kind and text of the grammar. Raises ValueError for one that cannot be written down."""
        if self.grammar is None:
            return None
        if not isinstance(self.grammar, WrittenGrammar):
            raise ValueError("constraint: this grammar cannot be written down for another engine")
        return self.grammar.source()


class Reader(Protocol):
    """Turns the data of one streamed answer into events. Stateful: one object per request."""

    def feed(self, data: bytes) -> list[TokenEvent]:
        """The events of one `data:` line; the last of an answer carries `finish`. Raises RefusedError for an error of
        the server, ValueError for what is not its protocol."""
        ...

    def end(self) -> list[TokenEvent]:
        """Those that wait for the end of the stream."""
        ...


class ServerProtocol(Protocol):
    """How one kind of server is spoken to. All its methods are pure."""

    kind: ClassVar[str]
    path: ClassVar[str]

    def check(self, params: SamplingParams, options: RequestOptions, grammars: Sequence[tuple[str, str]] = ()) -> None:
        """Raises ValueError naming the field that the server cannot do. grammars: kind and text of those of all parts
        of the answer, as `WrittenGrammar.source` gives them."""
        ...

    def body(self, request: ServerRequest) -> bytes:
        """The JSON of the request. Raises ValueError naming a field that the server cannot do."""
        ...

    def reader(self, request: ServerRequest) -> Reader: ...
