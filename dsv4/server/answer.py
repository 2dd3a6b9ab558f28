"""Tokens to an answer, one step at a time: what every HTTP dialect of the server builds on.

A step takes one `TokenEvent` and gives the deltas it settles. Stop strings are looked for in the content
only: one such as an empty line would otherwise end the reasoning before there is any answer.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field

from dsv4.encoding import (
    ContentDelta,
    Delta,
    ParsedCompletion,
    ReasoningDelta,
    StreamParser,
    Tokenizer,
)
from dsv4.generation import FinishReason, SamplingParams, TokenEvent, TokenGenerator
from dsv4.server.errors import ApiError
from dsv4.server.logprobs import LogprobTrack, Section, TokenRecord
from dsv4.server.stopping import StopStrings


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token settled: deltas in order, and the log-probabilities of the tokens behind their text."""

    deltas: list[Delta] = field(default_factory=list)
    logprobs: list[TokenRecord] = field(default_factory=list)


class Answer:
    """One answer in the making.

    thinking: the prompt ended in an open think block.
    tools: whether calls may be reported; without, the text of a call is dropped.

    `parsed` holds all deltas so far, `completion_tokens` counts every sampled token with the end token,
    `reasoning_tokens` those of the reasoning without the closing mark.
    """

    def __init__(self, tokenizer: Tokenizer, *, thinking: bool, stops: Sequence[str] = (), tools: bool = False) -> None:
        self.parsed = ParsedCompletion()
        self.completion_tokens = 0
        self.reasoning_tokens = 0
        self.finish: FinishReason | None = None
        self._decoder = tokenizer.decode_stream()
        self._parser = StreamParser("thinking" if thinking else "chat", tokenizer.dialect)
        self._matcher = StopStrings(stops)
        self._track = LogprobTrack(tokenizer)
        self._tools = tools
        self._reasoning = thinking
        self._think_ends = {tokenizer.token_id(tokenizer.dialect.think_close), tokenizer.eos_id}

    @property
    def over(self) -> bool:
        """Nothing more can come of this answer."""
        return self.finish is not None

    @property
    def finish_reason(self) -> str:
        """As the official service names it. Calls that were cut off are no reason to run tools."""
        calls = self.parsed.tool_calls
        match self.finish:
            case FinishReason.STOP if calls and all(call.complete for call in calls):
                return "tool_calls"
            case FinishReason.STOP:
                return "stop"
            case FinishReason.LENGTH:
                return "length"
            case _:
                return "aborted"

    def step(self, event: TokenEvent) -> Piece:
        """Take one event. Raises ValueError for a token id that the tokenizer does not know."""
        raw: list[Delta] = []
        ended = self._parser.ended
        if event.token is not None:
            self._track.sampled(event.token, event.logprobs)
            raw += self._parser.feed(self._decoder.step(event.token))
            self._count(event.token, raw)
        self.finish = event.finish
        if self.over:
            raw += [*self._parser.feed(self._decoder.finish()), *self._parser.finish()]
        piece = self._settle(raw)
        if self._matcher.found or self._parser.malformed or ended:
            # what follows could never be shown; after a closed block of calls one end token is waited for
            self.finish = FinishReason.STOP
        if self.finish is FinishReason.LENGTH and self._parser.ended:
            # the last token allowed closed the block of calls: nothing was cut off
            self.finish = FinishReason.STOP
        for delta in piece.deltas:
            self.parsed.add(delta)
        return piece

    def _count(self, token: int, raw: Sequence[Delta]) -> None:
        self.completion_tokens += 1
        if token in self._think_ends or not all(isinstance(delta, ReasoningDelta) for delta in raw):
            self._reasoning = False
        self.reasoning_tokens += self._reasoning

    def _settle(self, raw: Sequence[Delta]) -> Piece:
        piece = Piece()
        for delta in raw:
            match delta:
                case ReasoningDelta():
                    piece.logprobs.extend(self._track.parsed(Section.REASONING))
                    piece.deltas.append(delta)
                case ContentDelta(text):
                    self._track.parsed(Section.CONTENT)
                    self._give(self._matcher.feed(text), piece)
                case _:
                    self._track.parsed(None)
                    self._give(self._matcher.finish(), piece)
                    if self._tools:
                        piece.deltas.append(delta)
            if self._matcher.found:
                return piece
        if self.over:
            self._give(self._matcher.finish(), piece)
        return piece

    def _give(self, text: str, piece: Piece) -> None:
        if text:
            piece.deltas.append(ContentDelta(text))
            piece.logprobs.extend(self._track.given(text))


async def run(
    generator: TokenGenerator, prompt: Sequence[int], params: SamplingParams, answer: Answer
) -> AsyncGenerator[Piece, None]:
    """Generate until the answer is over; closes the generator's stream however it ends.

    Raises ApiError: 400 if the engine refuses the request, 500 if it fails or ends without saying why.
    """
    events = generator.stream(prompt, params)
    try:
        while (event := await _next(events, started=answer.completion_tokens > 0)) is not None:
            if event.finish is FinishReason.ERROR:
                raise ApiError(500, event.error or "the engine failed", code="engine_error")
            yield _step(answer, event)
            if answer.over:
                return
    finally:
        await _close(events)
    raise ApiError(500, "the engine ended the answer without a reason", code="engine_error")


def _step(answer: Answer, event: TokenEvent) -> Piece:
    try:
        return answer.step(event)
    except ValueError as error:
        # a model may have more rows than its tokenizer has tokens, and sample one of them
        raise ApiError(500, f"the model wrote what its tokenizer cannot read: {error}", code="engine_error") from error


async def _next(events: AsyncIterator[TokenEvent], *, started: bool) -> TokenEvent | None:
    try:
        return await anext(events, None)
    except ValueError as error:
        if started:
            raise
        # refused before any work: the request is at fault, not the engine
        raise ApiError(400, str(error)) from error


async def _close(events: AsyncIterator[TokenEvent]) -> None:
    # the protocol promises an iterator; only generators have something to close
    if isinstance(events, AsyncGenerator):
        await events.aclose()
