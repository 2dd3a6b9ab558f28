"""The output of `dsv4 chat`: the model's text without control sequences, reasoning and notes dimmed."""

import os
import sys
import time
from typing import TYPE_CHECKING

from dsv4.encoding import ContentDelta, Delta, ReasoningDelta
from dsv4.generation import FinishReason
from dsv4.observe import printable

if TYPE_CHECKING:
    from dsv4.api.answers import Answer

DIM, RED, BOLD, PLAIN = "\x1b[2m", "\x1b[31m", "\x1b[1m", "\x1b[0m"


class Screen:
    """Writes answers to stdout. Notes go to stdout in a terminal and else to stderr, so that a pipe gets only
    answers."""

    def __init__(self) -> None:
        self.terminal = sys.stdout is not None and sys.stdout.isatty()
        self._styled = self.terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def note(self, text: str) -> None:
        """Show a line that is not from the model."""
        self._line(text, DIM)

    def head(self, text: str) -> None:
        self._line(text, BOLD)

    def problem(self, text: str) -> None:
        """Show a line about an error."""
        self._line(text, RED)

    def write(self, text: str, style: str = "") -> None:
        """Show text of the model at once."""
        sys.stdout.write(self._in(style, printable(text, lines=True)))
        sys.stdout.flush()

    def _line(self, text: str, style: str) -> None:
        out = sys.stdout if self.terminal else sys.stderr
        print(self._in(style, printable(text, lines=True)), file=out, flush=True)

    def _in(self, style: str, text: str) -> str:
        return f"{style}{text}{PLAIN}" if style and self._styled and text else text


class AnswerView:
    """Shows the deltas of one answer and measures its time."""

    def __init__(self, screen: Screen) -> None:
        self._screen, self._began = screen, time.perf_counter()
        self._first: float | None = None
        self._last = self._began
        self._section, self._fresh = "", True  # fresh: the cursor is at the beginning of a line

    def show(self, delta: Delta) -> None:
        """Show the next delta."""
        self._last = time.perf_counter()
        self._first = self._first or self._last
        match delta:
            case ReasoningDelta(text):
                self._write("reasoning", text, DIM)
            case ContentDelta(text):
                self._write("content", text, "")

    def end(self) -> None:
        """End the last line of the answer."""
        if not self._fresh:
            self._write(self._section, "\n", "")

    def _write(self, section: str, text: str, style: str) -> None:
        if section != self._section:
            if not self._fresh:
                self._screen.write("\n")
            self._section = section
        self._screen.write(text, style)
        if text:
            self._fresh = text.endswith("\n")

    def speed(self, answer: "Answer") -> str:
        """Tokens, tokens per second, time to the first token, cached tokens."""
        tokens, reused = len(answer.completion.tokens), answer.completion.reused
        parts = [f"{tokens:,} tokens"]
        if self._first is not None:
            spent = self._last - self._first
            if tokens > 1 and spent > 0:
                parts.append(f"{(tokens - 1) / spent:,.1f} tok/s")
            parts.append(f"first after {self._first - self._began:.2f} s")
        parts.append(f"{reused:,} of {answer.prompt_tokens:,} prompt tokens cached")
        return f"[{', '.join(parts)}]"


def remark(answer: "Answer", max_tokens: int, context: int) -> str | None:
    """A note about the end of an answer; None for a complete one."""
    used = answer.prompt_tokens + len(answer.completion.tokens)
    match answer.finish:
        case FinishReason.ERROR:
            return f"the engine failed: {answer.completion.error or 'without a reason'}; /retry asks again"
        case FinishReason.LENGTH if used >= context:
            return f"cut: the context of {context:,} tokens is full; /undo takes the last turn back, /clear starts over"
        case FinishReason.LENGTH:
            where = "" if answer.content.strip() else " before it answered"
            return f"cut{where} at --max-tokens {max_tokens:,}"
        case FinishReason.STOP if not answer.content.strip() and not answer.tool_calls:
            return "the answer is blank; /retry asks again"
        case _:
            return None
