"""`dsv4 serve --record`: what is asked becomes a trace that holds no text, and answers do not change."""

import asyncio
import json
import stat
from pathlib import Path

import pytest

from dsv4.generation import RequestOptions, SamplingParams
from dsv4.server.backend.endable import Endable
from dsv4.server.backend.recorded import BLOCK_TOKENS, Recorded, prefix_hashes
from dsv4.testing.stub import StubGenerator
from dsv4.workload.trace import read_trace

HEAD = list(range(BLOCK_TOKENS))


async def asked(recorded: Recorded, prompt: list[int], owner: str = "", most: int = 100) -> list[int]:
    """The answer, or its first `most` tokens before the stream is closed."""
    found: list[int] = []
    events = recorded.stream(prompt, SamplingParams(max_tokens=50), RequestOptions(owner=owner))
    async for event in events:
        found += [] if event.token is None else [event.token]
        if len(found) == most:
            break
    await events.aclose()
    return found


def test_requests_become_a_trace(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    recorded = Recorded(StubGenerator([5, 6, 7, 8]), file)

    async def ask() -> None:
        assert await asked(recorded, [*HEAD, 1, 2]) == [5, 6, 7, 8]
        await asked(recorded, [*HEAD, 3, 4, 5])
        await asked(recorded, HEAD, "someone else")
        assert await asked(recorded, HEAD, most=2) == [5, 6]

    asyncio.run(ask())
    recorded.close()
    first, second, other, cut = read_trace(file)
    assert [r.input for r in (first, second, other, cut)] == [258, 259, 256, 256]
    assert [r.output for r in (first, second, other, cut)] == [4, 4, 4, 2]
    assert first.blocks[0] == second.blocks[0] == cut.blocks[0] != other.blocks[0]
    assert first.blocks[1] != second.blocks[1]
    assert first.at is not None
    assert second.at is not None
    assert first.at <= second.at
    line = json.loads(file.read_text().splitlines()[0])
    assert set(line) == {
        "timestamp", "input_length", "output_length", "hash_ids", "block_size", "first_token", "duration",
    }  # fmt: skip
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_hashes_need_the_key() -> None:
    assert prefix_hashes(HEAD, "", b"a") != prefix_hashes(HEAD, "", b"b")
    assert prefix_hashes([1, *HEAD], "", b"a")[1] != prefix_hashes([2, *HEAD], "", b"a")[1]


def test_a_file_that_fails_costs_no_answer(tmp_path: Path) -> None:
    recorded = Recorded(StubGenerator([5, 6]), tmp_path / "trace.jsonl")
    recorded.close()
    assert asyncio.run(asked(recorded, [1])) == [5, 6]


def test_state_passes_through(tmp_path: Path) -> None:
    recorded = Recorded(StubGenerator([5], context_length=77), tmp_path / "t.jsonl")
    outer = Endable(recorded)
    assert (outer.context_length, outer.failing, outer.reports) == (77, None, True)
    assert asyncio.run(outer.report()).page_tokens == 256
    recorded.close()


class Untold:
    """A generator that does not report its state, as one that a server elsewhere computes."""

    context_length = 9

    def __init__(self) -> None:
        self.stream = StubGenerator([5]).stream


def test_a_generator_without_a_report_has_none_when_recorded(tmp_path: Path) -> None:
    recorded = Recorded(Untold(), tmp_path / "t.jsonl")
    outer = Endable(recorded)
    assert not outer.reports
    with pytest.raises(RuntimeError, match="does not report"):
        asyncio.run(outer.report())
    recorded.close()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Recorded(StubGenerator([5]), tmp_path / "no" / "t.jsonl")
