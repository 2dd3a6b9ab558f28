"""The write-ahead log of a batch of rollouts: every token, as it is generated (report 5.10).

One file per batch; each record is one write, so what a killed process has logged is on the system's side already. A
machine that loses power may lose the end of the file. A record has a checksum: an incomplete one at the end is cut off
when the file is opened, and its token is generated again.

    file    MAGIC, then records
    record  kind (1 byte), rollout (uint32), length (uint32), CRC-32 of these and the payload (uint32), payload
"""

import json
import os
import struct
import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from dsv4.files import naming, sync_path
from dsv4.generation import FinishReason, TokenTrace
from dsv4.observe import log
from dsv4.posttraining.environment import More, Verdict
from dsv4.posttraining.traces import row_bytes, row_of

MAGIC = b"dsv4 rollouts 1\n"
_HEAD = struct.Struct("<cIII")
_TOKEN = struct.Struct("<IdiBdi")  # token, logprob, version, finish, log mass of the kept ids, their number (-1 = all)
_TRACE = struct.Struct("<III")  # first position, positions, layers with experts (the others have entries)
_FINISHES = (None, *FinishReason)


class LogWriteError(OSError):
    """The log cannot be written (a full disk, mostly). The batch stops, and goes on from what is in the log."""


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A token of the policy. logprob: under the distribution it was sampled from. finish: set on the last of a turn.
    kept, mass: as in TokenTrace."""

    token: int
    logprob: float
    version: int
    finish: FinishReason | None = None
    kept: Sequence[int] | None = None
    mass: float = 0.0


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a rollout, or of a turn without a token (then without a verdict)."""

    finish: FinishReason
    verdict: Verdict | None = None


Entry = SampledToken | More | Ended | TokenTrace


@dataclass(slots=True)
class Recovered:
    """What the log has of one rollout. prompt: checksum of the prompt it was made for."""

    number: int
    prompt: int
    entries: list[Entry] = field(default_factory=list)


class RolloutLog:
    """An open log. `recovered`: what it had when it was opened, by prompt key and index."""

    def __init__(self, path: Path, descriptor: int, recovered: dict[tuple[str, int], Recovered], size: int) -> None:
        self.path, self._descriptor, self.recovered = path, descriptor, recovered
        self._count, self._size = len(recovered), size

    @classmethod
    def open(cls, path: Path) -> Self:
        """Create a log, or read one and cut off what is incomplete at its end. Raises ValueError for another file,
        OSError naming it where it cannot be used."""
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            data = path.read_bytes()
            if not data.startswith(MAGIC[: len(data)]):
                raise ValueError(f"{path}: not a log of rollouts")
            recovered, whole = _read(data, path)
            if whole < len(data):
                log("rollout_log_cut", path=str(path), bytes=len(data) - whole)
            os.ftruncate(descriptor, whole)
            if not whole:
                _write(descriptor, path, MAGIC)
                sync_path(path.parent)
            whole = os.lseek(descriptor, 0, os.SEEK_END)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, recovered, whole)

    def begin(self, key: str, index: int, prompt: Sequence[int]) -> int:
        """A new rollout; returns its number in this log."""
        number = self._count
        self._count += 1
        name = {"key": key, "index": index, "prompt": prompt_checksum(prompt)}
        self._append(_record(b"B", number, json.dumps(name).encode()))
        return number

    def append(self, number: int, *entries: Entry) -> None:
        """Log what happened together, whole or not at all. Raises LogWriteError."""
        self._append(b"".join(_packed(number, entry) for entry in entries))

    def _append(self, data: bytes) -> None:
        try:
            _write(self._descriptor, self.path, data)
        except OSError:
            # a part of a record would hide what is written behind it
            os.ftruncate(self._descriptor, self._size)
            os.lseek(self._descriptor, self._size, os.SEEK_SET)
            raise
        self._size += len(data)

    def close(self) -> None:
        """All of it is on the disk when this returns. Does nothing the second time."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            try:
                with naming(self.path):
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)


def prompt_checksum(tokens: Sequence[int]) -> int:
    """What tells that a logged rollout belongs to these prompt tokens."""
    return zlib.crc32(array("I", tokens).tobytes())


def _write(descriptor: int, path: Path, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except OSError as error:
            raise LogWriteError(error.errno, f"rollouts cannot be logged: {error.strerror}", str(path)) from error


def _record(kind: bytes, number: int, payload: bytes) -> bytes:
    return _HEAD.pack(kind, number, len(payload), _sum(kind, number, payload)) + payload


def _sum(kind: bytes, number: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(kind + number.to_bytes(4, "little")))


def _packed(number: int, entry: Entry) -> bytes:
    match entry:
        case SampledToken(token, logprob, version, finish, kept, mass):
            count = -1 if kept is None else len(kept)
            head = _TOKEN.pack(token, logprob, version, _FINISHES.index(finish), mass, count)
            return _record(b"T", number, head + array("I", kept or ()).tobytes())
        case More(tokens, note):
            return _record(b"M", number, json.dumps({"tokens": tokens, "note": note}).encode())
        case Ended(finish, verdict):
            value = None if verdict is None else [verdict.reward, dict(verdict.metrics), verdict.error]
            return _record(b"E", number, json.dumps([finish, value]).encode())
        case TokenTrace():
            return _record(b"X", number, zlib.compress(_trace_bytes(entry), 1))


def _trace_bytes(trace: TokenTrace) -> bytes:
    """Experts and entries; `kept` goes with the tokens."""
    parts = [_TRACE.pack(trace.first, len(trace.kept), len(trace.experts))]
    for layers in (trace.experts, trace.entries):
        for layer, rows in layers.items():
            parts += [array("I", [layer]).tobytes(), *map(row_bytes, rows)]
    return b"".join(parts)


def _trace_of(data: bytes) -> TokenTrace:
    first, count, with_experts = _TRACE.unpack_from(data)
    words, at = memoryview(data)[_TRACE.size :].cast("I"), 0
    layers: list[tuple[int, list[Sequence[int]]]] = []
    while at < len(words):
        layer, rows = words[at], []
        at += 1
        for _ in range(count):
            row, at = row_of(words, at)
            rows.append(row)
        layers.append((layer, rows))
    return TokenTrace(first, dict(layers[:with_experts]), dict(layers[with_experts:]), [None] * count)


def _read(data: bytes, path: Path) -> tuple[dict[tuple[str, int], Recovered], int]:
    """What a log holds, and how many bytes of it are whole records."""
    found: dict[tuple[str, int], Recovered] = {}
    numbers: dict[int, Recovered] = {}
    at = len(MAGIC)
    if len(data) < at:
        return {}, 0
    while at + _HEAD.size <= len(data):
        kind, number, length, checksum = _HEAD.unpack_from(data, at)
        payload = data[at + _HEAD.size : at + _HEAD.size + length]
        if len(payload) < length or _sum(kind, number, payload) != checksum:
            break
        if kind == b"B":
            name: Mapping = json.loads(payload)
            numbers[number] = found[name["key"], name["index"]] = Recovered(number, name["prompt"])
        elif number in numbers:
            numbers[number].entries.append(_entry(kind, payload))
        else:
            raise ValueError(f"{path}: a record at byte {at} belongs to no rollout")
        at += _HEAD.size + length
    return found, at


def _entry(kind: bytes, payload: bytes) -> Entry:
    match kind:
        case b"T":
            token, logprob, version, finish, mass, count = _TOKEN.unpack_from(payload)
            kept = array("I", payload[_TOKEN.size :]) if count >= 0 else None
            return SampledToken(token, logprob, version, _FINISHES[finish], kept, mass)
        case b"M":
            fields = json.loads(payload)
            return More(tuple(fields["tokens"]), fields["note"])
        case b"X":
            return _trace_of(zlib.decompress(payload))
        case _:
            finish, value = json.loads(payload)
            return Ended(FinishReason(finish), None if value is None else Verdict(*value))
