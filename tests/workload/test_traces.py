"""Traces and workloads: a file gives back what was written, wrong lines are named, prefixes grow as agents' do."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest

from dsv4.workload.kinds import Workload, faster, poisson
from dsv4.workload.timing import ServiceLimits, Timing, percentile, summarise
from dsv4.workload.trace import PromptBlock, TraceRequest, longest, read_trace, sessions_of, write_trace


def written(folder: Path, *lines: object) -> Path:
    file = folder / "trace.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_a_written_trace_is_read_back(tmp_path: Path) -> None:
    sessions = poisson(Workload("agent", turns=3, delay=0.5).sessions(4, "s"), 2.0)
    requests = [request for session in sessions for request in session]
    file = tmp_path / "agents.jsonl"
    write_trace(file, requests)
    read = read_trace(file)
    assert [r.blocks for r in read] == [r.blocks for r in requests]
    assert [(r.output, r.session, r.answer_id) for r in read] == [(r.output, r.session, r.answer_id) for r in requests]
    assert all(math.isclose(a.delay, b.delay) for a, b in zip(read, requests, strict=True))
    assert [r.at is None for r in read] == [r.at is None for r in requests]
    assert [len(session) for session in sessions_of(read)] == [3, 3, 3, 3]


def test_a_published_trace_is_read(tmp_path: Path) -> None:
    """Blocks of 512 tokens, of which the last one may be shorter; tokens behind the last id are shared with nobody."""
    file = written(
        tmp_path,
        {"timestamp": 0, "input_length": 1300, "output_length": 500, "hash_ids": [0, 1, 2]},
        {"timestamp": 1500, "input_length": 1300, "output_length": 3, "hash_ids": [0, 1]},
        {"timestamp": 1500, "input_length": 20, "output_length": 3},
    )
    first, second, third = read_trace(file)
    assert [block.tokens for block in first.blocks] == [512, 512, 276]
    assert first.blocks[:2] == second.blocks[:2]
    assert second.blocks[2].tokens == 276
    assert len({first.blocks[2].id, second.blocks[2].id, third.blocks[0].id}) == 3
    assert (second.at, third.input) == (1.5, 20)
    assert len(sessions_of([first, second, third])) == 3
    assert longest([first, second]) == 1800
    assert len(read_trace(file, most=2)) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([1], "a request must be an object"),
        ({"output_length": 1}, "input_length must be a whole number of at least 1"),
        ({"input_length": 5, "output_length": 0}, "output_length must be a whole number of at least 1 and at most"),
        ({"input_length": 5, "output_length": 1, "hash_ids": 3}, "hash_ids must be a list"),
        ({"input_length": 5, "output_length": 1, "hash_ids": [1, 2]}, "2 hash_ids of 512 tokens are more"),
        ({"input_length": 5, "output_length": 1, "hash_ids": [1], "block_lengths": [4]}, "with the sum 5"),
        ({"input_length": 5, "output_length": 1, "roles": ["boss"]}, "roles must name one of system"),
        ({"input_length": 5, "output_length": 1, "timestamp": -1}, "timestamp must be a number of at least 0"),
        ({"input_length": 5, "output_length": 1, "delay": "x"}, "delay must be a number of at least 0"),
        ({"input_length": 5, "output_length": 1, "delay": 10**400}, "delay must be a number of at least 0"),
        ({"input_length": 5, "output_length": 1, "timestamp": math.inf}, "timestamp must be a number of at least 0"),
        ({"input_length": 10**12, "output_length": 1}, "input_length must be a whole number of at least 1 and at most"),
        ({"input_length": 5, "output_length": 1, "roles": [["user"]]}, "roles must name one of system"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: object, message: str) -> None:
    file = written(tmp_path, {"input_length": 5, "output_length": 1}, line)
    with pytest.raises(ValueError, match="line 2: ") as caught:
        read_trace(file)
    assert message in str(caught.value)


@pytest.mark.parametrize("line", [b"{", b'{"input_length": "\xff"}', b"[" * 200_000], ids=["cut", "bytes", "nested"])
def test_a_line_that_is_no_json_is_named(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_bytes(b'{"input_length": 5, "output_length": 1}\n' + line + b"\n")
    with pytest.raises(ValueError, match="line 2: "):
        read_trace(file)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_times_are_finite(number: float) -> None:
    sessions = Workload().sessions(1, "x")
    with pytest.raises(ValueError, match="delay must"):
        Workload(delay=number)
    with pytest.raises(ValueError, match="rate must"):
        poisson(sessions, number)
    with pytest.raises(ValueError, match="speed must"):
        faster(sessions, number)
    with pytest.raises(ValueError, match="max_ttft must"):
        ServiceLimits(ttft=number)


def test_an_empty_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no request"):
        read_trace(written(tmp_path))


def test_agents_send_back_what_was_said() -> None:
    (session,) = Workload("agent", input=100, output=40, shared=1000, turns=4).sessions(1, "x")
    assert session[0].blocks[0] == PromptBlock("x-system", 1000, "system")
    for before, after in pairwise(session):
        known = (*before.blocks, PromptBlock(before.answer_id, before.output, "assistant"))
        assert after.blocks[: len(known)] == known
        assert len(after.blocks) == len(known) + 1


def test_kinds_share_what_they_should() -> None:
    assert not shared(Workload("fixed").sessions(2, "a"))
    assert [block.tokens for block in shared(Workload("prefix", shared=300).sessions(2, "a"))] == [300]
    assert not shared([*Workload("prefix").sessions(1, "a"), *Workload("prefix").sessions(1, "b")])
    assert Workload("agent").sessions(3, "a", 1) == Workload("agent").sessions(3, "a", 1)


def shared(sessions: list[tuple[TraceRequest, ...]]) -> set[PromptBlock]:
    first, second = sessions
    return set(first[0].blocks) & set(second[0].blocks)


def test_arrivals_have_the_rate() -> None:
    sessions = poisson(Workload().sessions(2000), 50.0, seed=3)
    times = [session[0].at or 0.0 for session in sessions]
    assert times[0] == 0
    assert times == sorted(times)
    assert 36 < times[-1] < 44  # 2000 / 50, four standard deviations are 3.6
    assert faster(sessions, 4.0)[-1][0].at == times[-1] / 4


def test_summary_of_known_times() -> None:
    good = Timing(0.0, 0.1, [1.0, 1.5, 2.5], 2.5, prompt=10, cached=5, generated=3, wanted=3)
    late = Timing(1.0, 1.0, [9.0], 9.0, prompt=10, cached=0, generated=1, wanted=3)
    broken = Timing(2.0, 2.0, end=3.0, wanted=3, error="status 429")
    found = summarise([good, late, broken], ServiceLimits(ttft=2.0, tpot=1.0))
    assert (found.requests, found.finished, found.errors, found.short) == (3, 2, {"status 429": 1}, 1)
    assert (found.seconds, found.late) == (9.0, 0.1)
    assert found.ttft["p50"] == (1.0 + 8.0) / 2
    assert found.itl == {"mean": 0.75, "p50": 0.75, "p90": 0.95, "p95": 0.975, "p99": pytest.approx(0.995), "max": 1.0}
    assert good.per_token == 0.75
    assert (found.good, found.hit_rate) == (1, 0.25)
    assert found.output_rate == 4 / 9
    assert summarise([]).to_dict()["goodput"] is None


def test_percentiles_lie_between_values() -> None:
    assert [percentile([1.0, 2.0, 4.0], p) for p in (0, 50, 75, 100)] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Workload("chat"), "workload must be one of fixed, prefix, agent"),  # type: ignore[arg-type]
        (lambda: Workload(turns=0), "turns must be at least 1"),
        (lambda: Workload(shared=-1), "shared must be at least 0"),
        (lambda: poisson([], 0.0), "rate must be more than 0"),
        (lambda: faster([], 0.0), "speed must be more than 0"),
        (lambda: ServiceLimits(ttft=0.0), "max_ttft must be more than 0"),
    ],
)
def test_mistakes_name_field_and_range(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
