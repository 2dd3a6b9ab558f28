"""Tokens to an answer, one step at a time.

A step takes one `TokenEvent` and returns the deltas that are final then. Only control tokens have an effect: the
characters of `</think>` or of a call's markup, written with ordinary tokens, are text. Stop strings are searched in the
content only: a stop string such as an empty line would otherwise end the reasoning before the answer begins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dsv4.answer.breaks import LineBreaks
from dsv4.answer.logprobs import LogprobTrack, Section, TokenRecord
from dsv4.answer.stopping import StopStrings
from dsv4.encoding import (
    ContentDelta,
    Delta,
    ParsedCompletion,
    ReasoningDelta,
    StreamParser,
    Tokenizer,
)
from dsv4.generation import FinishReason, TokenEvent

_SECTIONS = {ReasoningDelta: Section.REASONING, ContentDelta: Section.CONTENT}


@dataclass(slots=True)
class AnswerStep:
    """The result of one token: deltas in order, and the log-probabilities of the tokens of their text."""

    deltas: list[Delta] = field(default_factory=list)
    logprobs: list[TokenRecord] = field(default_factory=list)


class AnswerInProgress:
    """One answer while it is generated.

    thinking: the prompt ended in an open think block.
    tools: whether calls may be reported; if not, the text of a block of calls is dropped.
    functions: the OpenAI function objects of the request, None = any name may be called and arguments have no schema.
    single: the tag of a second call ends the answer.
    begun: the part of the answer that is already in the prompt and is not emitted: the opening of a block of calls.
    continued: the answer continues text of the prompt.

    `parsed` holds all deltas so far, `completion_tokens` counts every sampled token with the end token,
    `reasoning_tokens` counts those of the reasoning without the closing mark.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        thinking: bool,
        stops: Sequence[str] = (),
        tools: bool = False,
        functions: Sequence[Mapping[str, Any]] | None = None,
        single: bool = False,
        begun: str = "",
        continued: bool = False,
    ) -> None:
        self.parsed = ParsedCompletion()
        self.completion_tokens = 0
        self.reasoning_tokens = 0
        self.finish: FinishReason | None = None
        self._decoder = tokenizer.decode_stream()
        self._controls = tokenizer.controls
        self._parser = StreamParser("thinking" if thinking else "chat", tokenizer.dialect, functions)
        self._parser.feed(begun)
        self._matcher = StopStrings(stops)
        self._track = LogprobTrack(tokenizer)
        self._breaks = LineBreaks(continued=continued)
        self._thoughts: list[TokenRecord] = []  # whose text waits
        self._tools, self._single = tools, single
        self._careful = bool(stops)  # no token takes the short way
        self._reasoning, self._closed = thinking, False
        self._think_close = tokenizer.token_id(tokenizer.dialect.think_close)

    @property
    def over(self) -> bool:
        """The answer is complete; further tokens have no effect."""
        return self.finish is not None

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the answer, if any."""
        return self._matcher.hit

    @property
    def finish_reason(self) -> str:
        """The finish reason in the official service's words: `tool_calls` only if every block of calls is complete."""
        match self.finish:
            case FinishReason.STOP:
                return "tool_calls" if self.parsed.tool_calls else "stop"
            case FinishReason.LENGTH:
                return "length"
            case _:
                return "aborted"

    def step(self, event: TokenEvent) -> AnswerStep:
        """Take one event. Raises ValueError for a token id that the tokenizer does not know."""
        token = event.token
        self._careful = self._careful or event.logprobs is not None
        if self._careful or token is None or event.finish is not None or token in self._controls:
            return self._any_step(event)
        text = self._decoder.step(token)
        kind = self._parser.kind(text)
        if kind is None or not self._breaks.passes(_SECTIONS[kind]):
            return self._any_step(event, text)
        # nearly every token: what `_any_step` does with it, without its questions, which take four times as long
        self.completion_tokens += 1
        if kind is ContentDelta:
            self._reasoning = False
            self._track.unrecorded(text)
            self.parsed.content += text
        else:
            self.reasoning_tokens += self._reasoning
            self.parsed.reasoning_content += text
        return AnswerStep([kind(text)], [])

    def _any_step(self, event: TokenEvent, text: str | None = None) -> AnswerStep:
        """text: of the token, if it is decoded already."""
        raw: list[Delta] = []
        ended = self._parser.ended
        if event.token is not None:
            self._track.sampled(event.token, event.logprobs)
            raw += self._parse(event.token, text, last=event.finish is FinishReason.STOP)
            self._count(event.token, raw)
        self.finish = event.finish
        if self.over:
            raw += self._parser.ordinary(self._decoder.finish())
            raw += self._parser.finish(cut=self.finish is not FinishReason.STOP)
        elif ended or (self._parser.ended and self._parser.over):
            # what follows could never be shown; after a closed block of calls one end token is waited for
            self.finish = FinishReason.STOP
        if self._single and self._parser.second_call:
            self.finish = FinishReason.STOP
        piece = self._settle(raw)
        if self._matcher.found:
            self.finish = FinishReason.STOP
        for delta in piece.deltas:
            self.parsed.add(delta)
        if self.finish is FinishReason.LENGTH and self._parser.ended and not self._parser.broken:
            # the last token allowed closed the block of calls: nothing was cut off
            self.finish = FinishReason.STOP
        if self.finish is FinishReason.STOP and self._parser.broken and self.parsed.tool_calls:
            # the client has received the beginning of a call; an unfinished call is reported as cut by a limit
            self.finish = FinishReason.LENGTH
        self.parsed.ended, self.parsed.malformed = self._parser.ended, self._parser.malformed
        self.parsed.broken = self._parser.broken
        return piece

    def _parse(self, token: int, text: str | None, *, last: bool) -> list[Delta]:
        """`last`: the token ended the answer; an end token of the folder then has no text."""
        control = self._controls.get(token)
        if control is None and last:
            return []
        if control is None:
            return self._parser.ordinary(self._decoder.step(token) if text is None else text)
        # a character that was begun is not completed by a control token
        return self._parser.ordinary(self._decoder.finish()) + self._parser.control(control)

    def _count(self, token: int, raw: Sequence[Delta]) -> None:
        self.completion_tokens += 1
        self._closed = self._closed or token == self._think_close
        if not self._reasoning:
            return
        closed = token == self._think_close or self._parser.ended
        if closed or not all(isinstance(delta, ReasoningDelta) for delta in raw):
            self._reasoning = False
        self.reasoning_tokens += self._reasoning

    def _settle(self, raw: Sequence[Delta]) -> AnswerStep:
        piece = AnswerStep()
        for delta in raw:
            match delta:
                case ReasoningDelta(text):
                    self._think(text, piece)
                case ContentDelta() if self._parser.broken and not self._tools:
                    pass
                case ContentDelta(text):
                    self._track.parsed(None if self._parser.broken else Section.CONTENT)
                    kept = self._breaks.leading(Section.CONTENT, text)
                    self._track.skip(len(text) - len(kept))
                    self._give(self._matcher.feed(kept), piece)
                case _:
                    self._track.parsed(None)
                    self._give(self._matcher.finish(), piece)
                    self._breaks.drop()
                    if self._tools:
                        piece.deltas.append(delta)
            if self._matcher.found:
                break
        if self._matcher.found or self.over:
            self._give(self._matcher.finish(), piece, last=True)
        return piece

    def _think(self, text: str, piece: AnswerStep) -> None:
        kept = self._breaks.leading(Section.REASONING, text)
        records = self._track.parsed(Section.REASONING)
        self._thoughts += records if kept else []
        if inner := self._breaks.inner(kept):
            piece.deltas.append(ReasoningDelta(inner))
            piece.logprobs.extend(self._thoughts)
            self._thoughts.clear()

    def _give(self, text: str, piece: AnswerStep, *, last: bool = False) -> None:
        text = self._breaks.inner(text)
        if last and self._breaks.section is Section.REASONING and not self._closed:
            if waiting := text + self._breaks.last():
                piece.deltas.append(ReasoningDelta(waiting))
                piece.logprobs.extend(self._thoughts)
            return
        if last and self._breaks.section is Section.CONTENT:
            text += self._breaks.last()
        if text:
            piece.deltas.append(ContentDelta(text))
            # the text of a broken block also stands for control tokens, which have no records
            if not self._parser.broken:
                piece.logprobs.extend(self._track.given(text))
