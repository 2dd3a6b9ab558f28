"""Sampled turns, kept so that later prompts contain the same tokens.

A client sends an assistant turn back as text, often with rewritten arguments and without its reasoning. When that text
is encoded again, its tokens differ from the sampled ones, and the cached prefix ends there. So the turn is looked up,
by the id of one of its calls or by the prompt that it answered, and its tokens are used if its text equals the
client's.
"""

import hashlib
import json
import re
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsv4.encoding import ParsedCompletion

MOST_TOKENS = 4_000_000
PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class SampledTurn:
    """One answer: its tokens with the end token, and their text. opener: the token before the first."""

    opener: int
    tokens: tuple[int, ...]
    reasoning: str
    content: str
    calls: tuple[tuple[str, str], ...]

    def equals(self, message: Mapping[str, Any]) -> bool:
        """Whether an assistant message (in the form of the encoding) has this turn's text; its reasoning may be
        missing, but not cleared on purpose."""
        reasoning = message.get("reasoning_content") or ""
        calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or ()]
        return (
            not (message.get("reasoning_cleared") and self.reasoning)
            and (not reasoning or reasoning.strip() == self.reasoning.strip())
            and (message.get("content") or "").strip() == self.content.strip()
            and [name for name, _ in calls] == [name for name, _ in self.calls]
            and all(_value(text) == value for (_, text), (_, value) in zip(calls, self.calls, strict=True))
        )


class Replays:
    """The turns of recent answers. `most_tokens` bounds the tokens of all turns together; the oldest are dropped
    first."""

    def __init__(self, most_tokens: int = MOST_TOKENS) -> None:
        self._turns: OrderedDict[tuple[str, str], SampledTurn] = OrderedDict()
        self._most, self._size = most_tokens, 0

    def keep(
        self, owner: str, prompt: Sequence[int], tokens: Sequence[int], parsed: ParsedCompletion, ids: Sequence[str]
    ) -> None:
        """Keep a finished answer to `prompt`. ids: those of its calls."""
        calls = tuple((call.name, _value(call.arguments)) for call in parsed.tool_calls)
        turn = SampledTurn(prompt[-1], tuple(tokens), parsed.reasoning_content, parsed.content, calls)
        digest = _digest(owner)
        _add(digest, prompt)
        for key in (digest.hexdigest(), *map(normal_id, ids)):
            self._put((owner, key), turn)

    def apply(
        self, owner: str, ids: Sequence[int], assistants: Sequence[Mapping[str, Any]], *, header: int, end: int
    ) -> list[int]:
        """The prompt `ids`, with the sampled tokens in place of every known turn.

        assistants: the assistant messages of the prompt in order. Each ends with the token `end`; most begin behind
        `header` and one more token.
        """
        out: list[int] = []
        start, digest = 0, _digest(owner)
        for message in assistants:
            try:
                stop = ids.index(end, start)
            except ValueError:
                break  # the last turn has no end token: the answer continues it
            run = list(ids[start : stop + 1])
            if header in run:
                border = len(run) - run[::-1].index(header) + 1  # behind the opener
                _add(digest, run[:border])
                turn = self._find(owner, digest.hexdigest(), message)
                if turn is not None and turn.opener == run[border - 1]:
                    run[border:] = turn.tokens
                _add(digest, run[border:])
            else:
                _add(digest, run)
            out += run
            start = stop + 1
        return [*out, *ids[start:]]

    def _find(self, owner: str, digest: str, message: Mapping[str, Any]) -> SampledTurn | None:
        keys = [normal_id(call.get("id") or "") for call in message.get("tool_calls") or ()]
        for key in (*keys, digest):
            turn = self._turns.get((owner, key))
            if turn is not None and turn.equals(message):
                self._turns.move_to_end((owner, key))
                return turn
        return None

    def _put(self, key: tuple[str, str], turn: SampledTurn) -> None:
        old = self._turns.pop(key, None)
        self._size += len(turn.tokens) - (len(old.tokens) if old else 0)
        self._turns[key] = turn
        while self._size > self._most:
            self._size -= len(self._turns.popitem(last=False)[1].tokens)


def normal_id(text: str) -> str:
    """The letters and digits of a call's id, the part that every client keeps."""
    return re.sub(r"[^A-Za-z0-9]", "", text)


def _value(text: str) -> str:
    """Arguments in a normal form, independent of spaces, order, escapes and the form of numbers (1, 1.0 and 1e0 are
    equal; true and 1 are not). Missing arguments are those of a call without parameters."""
    try:
        value = json.loads(text, parse_float=_number, parse_int=_number)
        return json.dumps({} if value is None else value, sort_keys=True)
    except (ValueError, RecursionError):
        return text if text.strip() else "{}"


def _number(text: str) -> float:
    """The number as a 64-bit float, as JavaScript reads it."""
    return float(text) + 0.0  # -0.0 is 0.0


def _digest(owner: str) -> "hashlib.blake2b":
    return hashlib.blake2b(owner.encode(), digest_size=16)


def _add(digest: "hashlib.blake2b", ids: Sequence[int]) -> None:
    # in pieces, so that other threads can run between them
    for at in range(0, len(ids), PIECE):
        digest.update(array("I", ids[at : at + PIECE]).tobytes())
