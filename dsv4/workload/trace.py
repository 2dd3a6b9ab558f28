"""Traces: requests by lengths, arrival times and prefixes, in JSON lines that hold no text.

The form is that of the published Mooncake traces, with optional fields for sessions and exact lengths; docs/capacity.md
describes it. Two prompts with the same leading block ids have the same leading tokens.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

Role = Literal["system", "user", "assistant"]
BLOCK_TOKENS = 512  # of a block where a line names no size
MOST_LINES = 1_000_000
MOST_MILLISECONDS = 10**13  # three centuries: times since 1970 too
MOST_TOKENS = 100_000_000  # of one prompt or answer: far beyond any model, and texts of it still fit into memory


@dataclass(frozen=True, slots=True)
class PromptBlock:
    """A part of a prompt: blocks with the same id have the same text. role: of the message that holds it."""

    id: str
    tokens: int
    role: Role = "user"


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request.

    output: tokens of the answer. at: seconds after the start; None = it follows the request before it of its session.
    delay: seconds between the end of that request and this one. session: requests of a session run one after another;
    "" = a session of its own. answer_id: the id of the block by which later requests of the session hold the answer.
    """

    blocks: tuple[PromptBlock, ...]
    output: int
    at: float | None = None
    delay: float = 0.0
    session: str = ""
    answer_id: str = ""

    @property
    def input(self) -> int:
        """Tokens of the prompt."""
        return sum(block.tokens for block in self.blocks)


Session = tuple[TraceRequest, ...]


def sessions_of(requests: Iterable[TraceRequest]) -> list[Session]:
    """The requests by session, in the order of the first request of each."""
    found: dict[str, list[TraceRequest]] = {}
    for number, request in enumerate(requests):
        found.setdefault(request.session or f"\0{number}", []).append(request)
    return [tuple(session) for session in found.values()]


def read_trace(file: Path, most: int = MOST_LINES) -> list[TraceRequest]:
    """The first `most` requests of a file. Raises ValueError with the line for one that is wrong, and for an empty
    file."""
    requests: list[TraceRequest] = []
    with file.open("rb") as lines:  # decoded line by line, so that a wrong byte has a line too
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            if len(requests) >= most:
                break
            try:
                requests.append(_request(json.loads(line), number))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{file}, line {number}: {error}") from None
    if not requests:
        raise ValueError(f"{file} holds no request")
    return requests


def write_trace(file: Path, requests: Iterable[TraceRequest]) -> None:
    """Write requests, so that `read_trace` gives the same ones."""
    with file.open("w", encoding="utf-8") as out:
        for request in requests:
            out.write(json.dumps(_line(request)) + "\n")


def _line(request: TraceRequest) -> dict[str, Any]:
    blocks = request.blocks
    line: dict[str, Any] = {
        "input_length": request.input,
        "output_length": request.output,
        "hash_ids": [block.id for block in blocks],
        "block_lengths": [block.tokens for block in blocks],
    }
    if any(block.role != "user" for block in blocks):
        line["roles"] = [block.role for block in blocks]
    if request.at is not None:
        line["timestamp"] = request.at * 1000
    for name, value in (
        ("delay", request.delay * 1000), ("session_id", request.session), ("answer_id", request.answer_id),
    ):  # fmt: skip
        if value:
            line[name] = value
    return line


def _request(line: Any, number: int) -> TraceRequest:
    if not isinstance(line, dict):
        raise ValueError(f"a request must be an object, got {str(line)[:40]!r}")
    tokens, output = _whole(line, "input_length", 1), _whole(line, "output_length", 1)
    ids = line.get("hash_ids", [])
    if not isinstance(ids, list) or not all(isinstance(one, int | str) for one in ids):
        raise ValueError("hash_ids must be a list of numbers or strings")
    lengths = _lengths(line, tokens, len(ids))
    roles = line.get("roles", ["user"] * len(lengths))
    if not isinstance(roles, list) or len(roles) != len(lengths) or any(role not in get_args(Role) for role in roles):
        raise ValueError(f"roles must name one of {', '.join(get_args(Role))} for each of {len(lengths)} blocks")
    # what no id covers is shared with no other request
    names = [*map(str, ids), *([f"line-{number}"] if len(lengths) > len(ids) else [])]
    at = line.get("timestamp")
    return TraceRequest(
        tuple(PromptBlock(name, count, role) for name, count, role in zip(names, lengths, roles, strict=True)),
        output,
        None if at is None else _number(line, "timestamp") / 1000,
        _number(line, "delay") / 1000,
        str(line.get("session_id") or ""),
        str(line.get("answer_id") or ""),
    )


def _lengths(line: dict[str, Any], tokens: int, count: int) -> list[int]:
    """Tokens of each block; one more block for tokens that no id covers."""
    given = line.get("block_lengths")
    if given is not None:
        if not isinstance(given, list) or not all(type(one) is int and one > 0 for one in given):
            raise ValueError("block_lengths must be a list of positive whole numbers")
        if len(given) not in (count, count + 1) or sum(given) != tokens:
            raise ValueError(f"block_lengths must be {count} numbers with the sum {tokens} (input_length)")
        return given
    size = _whole(line, "block_size", 1, BLOCK_TOKENS)
    if count > math.ceil(tokens / size):
        raise ValueError(f"{count} hash_ids of {size} tokens are more than the {tokens} tokens of input_length")
    lengths = [size] * count
    rest = tokens - size * count
    if rest < 0:
        lengths[-1] += rest
    return lengths if rest <= 0 else [*lengths, rest]


def _whole(line: dict[str, Any], name: str, least: int, default: int | None = None) -> int:
    value = line.get(name, default)
    if type(value) is not int or not least <= value <= MOST_TOKENS:
        allowed = f"at least {least} and at most {MOST_TOKENS:,}"
        raise ValueError(f"{name} must be a whole number of {allowed}, got {str(value)[:40]}")
    return value


def _number(line: dict[str, Any], name: str) -> float:
    value = line.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_MILLISECONDS:
        raise ValueError(
            f"{name} must be a number of at least 0 and at most {MOST_MILLISECONDS:,}, got {str(value)[:40]}"
        )
    return float(value)


def longest(requests: Sequence[TraceRequest]) -> int:
    """Tokens of the longest prompt with its answer."""
    return max(request.input + request.output for request in requests)
