"""The events that a parser reports while an answer arrives."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More reasoning text."""

    text: str


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """Call number `index` (from 0) begins; its arguments follow."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More of the arguments of call `index`, a piece of a JSON object."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """Call `index` is complete. Without this event it was cut off or broken and must not be executed."""

    index: int


Delta = ReasoningDelta | ContentDelta | ToolCallStart | ToolCallArguments | ToolCallEnd
"""What a stream of text is made of."""
