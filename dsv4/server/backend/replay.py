"""Sampled turns, kept to be put back into later prompts token for token.

A client sends an assistant turn back as text, often with its arguments written anew and its reasoning dropped. Encoded
again it has other tokens than were sampled, and everything cached behind it is lost. The turn is found by the id of
one of its calls, or by the prompt it answered, and used only if it says what the client says.
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
class Turn:
    """One answer: its tokens with the end token, and what they say. opener: the token before the first."""

    opener: int
    tokens: tuple[int, ...]
    reasoning: str
    content: str
    calls: tuple[tuple[str, str], ...]

    def says(self, message: Mapping[str, Any]) -> bool:
        """Whether an assistant message (as the encoding takes it) is this turn; its reasoning may be missing."""
        reasoning = message.get("reasoning_content") or ""
        calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or ()]
        return (
            (not reasoning or reasoning.strip() == self.reasoning.strip())
            and (message.get("content") or "").strip() == self.content.strip()
            and [name for name, _ in calls] == [name for name, _ in self.calls]
            and all(_value(text) == value for (_, text), (_, value) in zip(calls, self.calls, strict=True))
        )


class Replays:
    """The turns of recent answers, the oldest forgotten first. `most_tokens` bounds all of them together."""

    def __init__(self, most_tokens: int = MOST_TOKENS) -> None:
        self._turns: OrderedDict[tuple[str, str], Turn] = OrderedDict()
        self._most, self._size = most_tokens, 0

    def keep(
        self, owner: str, prompt: Sequence[int], tokens: Sequence[int], parsed: ParsedCompletion, ids: Sequence[str]
    ) -> None:
        """Remember a finished answer to `prompt`. ids: of its calls."""
        calls = tuple((call.name, _value(call.arguments)) for call in parsed.tool_calls)
        turn = Turn(prompt[-1], tuple(tokens), parsed.reasoning_content, parsed.content, calls)
        digest = _digest(owner)
        _add(digest, prompt)
        for key in (digest.hexdigest(), *map(normal_id, ids)):
            self._put((owner, key), turn)

    def apply(
        self, owner: str, ids: Sequence[int], assistants: Sequence[Mapping[str, Any]], *, header: int, end: int
    ) -> list[int]:
        """The prompt `ids` with every turn that is known replaced by what was sampled.

        assistants: its assistant messages in order; each is closed by the token `end`, and most begin behind `header`
        and one more token.
        """
        out: list[int] = []
        start, digest = 0, _digest(owner)
        for message in assistants:
            try:
                stop = ids.index(end, start)
            except ValueError:
                break  # a last turn that is to be continued
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

    def _find(self, owner: str, digest: str, message: Mapping[str, Any]) -> Turn | None:
        keys = [normal_id(call.get("id") or "") for call in message.get("tool_calls") or ()]
        for key in (*keys, digest):
            turn = self._turns.get((owner, key))
            if turn is not None and turn.says(message):
                self._turns.move_to_end((owner, key))
                return turn
        return None

    def _put(self, key: tuple[str, str], turn: Turn) -> None:
        old = self._turns.pop(key, None)
        self._size += len(turn.tokens) - (len(old.tokens) if old else 0)
        self._turns[key] = turn
        while self._size > self._most:
            self._size -= len(self._turns.popitem(last=False)[1].tokens)


def normal_id(text: str) -> str:
    """A call's id as far as every client keeps it: its letters and digits."""
    return re.sub(r"[^A-Za-z0-9]", "", text)


def _value(text: str) -> str:
    """Arguments in one form, however they are spaced, ordered and escaped, and whichever language printed their numbers
    (1, 1.0 and 1e0 are one); true and 1 stay different. Those of a call without any may be missing."""
    try:
        value = json.loads(text, parse_float=_number, parse_int=_number)
        return json.dumps({} if value is None else value, sort_keys=True)
    except (ValueError, RecursionError):
        return text if text.strip() else "{}"


def _number(text: str) -> float:
    """As the languages see it whose numbers are all of 64 bits."""
    return float(text) + 0.0  # -0.0 is 0.0


def _digest(owner: str) -> "hashlib.blake2b":
    return hashlib.blake2b(owner.encode(), digest_size=16)


def _add(digest: "hashlib.blake2b", ids: Sequence[int]) -> None:
    # in pieces, so that other threads get their turn
    for at in range(0, len(ids), PIECE):
        digest.update(array("I", ids[at : at + PIECE]).tobytes())
