"""Recorded answers as a file: one JSON object a line, in a form that anyone can write.

    {"id": "question-0", "model": "deepseek-v4-flash", "recorded": "2026-11-26T12:00:00+00:00",
     "messages": [{"role": "user", "content": "What is 17 + 25?"}],
     "tokens": [{"bytes": [52, 50], "logprob": -0.01, "top": [{"bytes": [52, 50], "logprob": -0.01}, ...]}, ...]}

`tokens` is the greedy answer without thinking; `top` has the likeliest tokens at that place, the likeliest first.
Tokens are bytes, so that a file does not depend on ids and may cut characters. Other fields are ignored.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv4.verify.answer import Scored


@dataclass(frozen=True, slots=True)
class Fixture:
    """One recorded answer."""

    id: str
    messages: tuple[Mapping[str, Any], ...]
    tokens: tuple[Scored, ...]


def read_fixtures(file: Path) -> list[Fixture]:
    """All fixtures of a file. Raises OSError, and ValueError naming the line that is no fixture."""
    found: list[Fixture] = []
    # NOTE: not by splitlines, which also cuts at line separators within JSON texts
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
            tokens = tuple(_token(token) for token in raw["tokens"])
            messages = tuple(dict(message) for message in raw["messages"])
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{file}, line {number}: no fixture ({type(error).__name__}: {error})") from None
        if not tokens or not messages:
            raise ValueError(f"{file}, line {number}: a fixture needs messages and tokens")
        found.append(Fixture(str(raw.get("id", number)), messages, tokens))
    if not found:
        raise ValueError(f"{file} has no fixtures")
    return found


def fixture_line(fixture: Fixture, **facts: str) -> str:
    """A fixture as a line of such a file. facts: more fields, as model and recorded."""
    tokens = [{**_entry(t.data, t.logprob), "top": [_entry(*pair) for pair in t.top]} for t in fixture.tokens]
    return json.dumps(
        {"id": fixture.id, **facts, "messages": [*fixture.messages], "tokens": tokens}, ensure_ascii=False
    )


def text_of(tokens: Sequence[Scored]) -> str | None:
    """The text of tokens; None where the last of them ends within a character."""
    try:
        return b"".join(token.data for token in tokens).decode()
    except UnicodeDecodeError:
        return None


def _token(raw: Mapping[str, Any]) -> Scored:
    top = tuple((bytes(other["bytes"]), _logprob(other)) for other in raw.get("top", ()))
    return Scored(bytes(raw["bytes"]), _logprob(raw), top)


def _logprob(raw: Mapping[str, Any]) -> float:
    value = float(raw["logprob"])
    if not math.isfinite(value):
        raise ValueError(f"logprob must be a finite number, got {value}")
    return value


def _entry(data: bytes, logprob: float) -> dict[str, Any]:
    return {"text": data.decode(errors="replace"), "bytes": [*data], "logprob": round(logprob, 6)}
