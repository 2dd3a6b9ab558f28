"""The results of `dsv4.load(...).chat` and `.stream`: a finished answer, and a stream of deltas."""

import uuid
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Self

from dsv4.answer import AnswerInProgress
from dsv4.encoding import Delta
from dsv4.generation import Completion, FinishReason, TokenEvent

SHOWN = 200


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """A finished chat answer. `reasoning` is empty with thinking off; `prompt_tokens` counts the prompt.

    tool_calls: the complete calls in OpenAI's form: {"id", "type": "function", "function": {"name", "arguments"}} with
    the arguments as JSON text. finish: the reason of the end; `completion` has the tokens and an error of the engine.
    """

    content: str
    reasoning: str
    tool_calls: tuple[dict[str, Any], ...]
    finish: FinishReason
    prompt_tokens: int
    completion: Completion

    @property
    def message(self) -> dict[str, Any]:
        """The answer as the next message of the conversation; the results of its calls come behind it.

        >>> messages += [answer.message, {"role": "tool", "tool_call_id": answer.tool_calls[0]["id"], "content": "4 C"}]
        """
        fields: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning:
            fields["reasoning_content"] = self.reasoning
        if self.tool_calls:
            fields["tool_calls"] = [dict(call) for call in self.tool_calls]
        return fields

    def __repr__(self) -> str:
        parts = [f"content={shortened(self.content)}"]
        if self.reasoning:
            parts.append(f"reasoning={shortened(self.reasoning)}")
        if self.tool_calls:
            calls = (f"{call['function']['name']}({call['function']['arguments']})" for call in self.tool_calls)
            parts.append(f"tool_calls=[{', '.join(calls)}]")
        parts.append(f"finish={self.finish.value!r}")
        if self.completion.error is not None:
            parts.append(f"error={self.completion.error!r}")
        parts.append(f"prompt_tokens={self.prompt_tokens}, completion_tokens={len(self.completion.tokens)}")
        return f"Answer({', '.join(parts)})"


class AnswerStream:
    """Iterates over the deltas of one answer. Afterwards `finish` is the reason of its end and `answer()` the whole."""

    def __init__(
        self, events: Generator[TokenEvent, None, None], progress: AnswerInProgress, prompt_tokens: int
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self._progress = progress
        self._completion = Completion(finish=FinishReason.ABORT)
        self._ids: list[str] = []
        self._deltas = self._run(events)

    def __iter__(self) -> Iterator[Delta]:
        return self._deltas

    def __next__(self) -> Delta:
        return next(self._deltas)

    def close(self) -> None:
        """Stop the generation now. `finish` is then `abort`, unless the answer had ended."""
        self._deltas.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = self.finish.value if self._progress.over else "not ended"
        said = shortened(self._progress.parsed.content)
        return f"AnswerStream({state}, {self.prompt_tokens} + {len(self._completion.tokens)} tokens, content={said})"

    @property
    def finish(self) -> FinishReason:
        return self._completion.finish

    def answer(self) -> Answer:
        """The answer so far."""
        message = self._progress.parsed.message()
        calls = message.get("tool_calls") or ()
        while len(self._ids) < len(calls):
            self._ids.append(f"call{len(self._ids):02d}{uuid.uuid4().hex[:24]}")
        return Answer(
            message.get("content") or "",
            message.get("reasoning_content") or "",
            tuple({"id": name, **call} for name, call in zip(self._ids, calls, strict=False)),
            self.finish,
            self.prompt_tokens,
            self._completion,
        )

    def _run(self, events: Generator[TokenEvent, None, None]) -> Generator[Delta, None, None]:
        with closing(events):
            for event in events:
                self._completion.add(event)
                yield from self._progress.step(event).deltas
                if self._progress.finish is not None:
                    self._completion.finish = self._progress.finish
                    return


def shortened(text: str) -> str:
    """The representation of a text, cut to a readable length."""
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")
