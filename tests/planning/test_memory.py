"""From a memory budget to pages, sequences and snapshots."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dsv4.cache import CacheSpec
from dsv4.planning import memory
from dsv4.planning.cache_budget import plan_cache
from dsv4.planning.memory import check_budget, free_memory, parse_memory
from dsv4.testing.tiny import tiny_config

SPEC = CacheSpec(tiny_config(), "fp32")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 * 2**30),
        ("500 MB", 500 * 10**6),
        ("1.5gib", 3 * 2**29),
        ("4096", 4096),
        ("2k", 2000),
        ("1tib", 2**40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_memory(text) == size


def test_a_share_is_of_free_memory() -> None:
    assert parse_memory("50%") == pytest.approx(free_memory() / 2, rel=0.2)


@pytest.mark.parametrize("limit", [None, 4 * 2**30])
def test_a_budget_far_above_free_memory_is_refused_with_the_numbers(
    limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_system", lambda field: 20 * 2**30)
    monkeypatch.setattr(memory, "_container_room", lambda: limit)
    free = limit or 20 * 2**30
    for fits in (1, free, free * 6 // 5):
        check_budget("--memory", fits)
    for budget in (free * 13 // 10, 100 * 2**30, 10 * 2**40):
        with pytest.raises(ValueError, match=r"^--memory must be at most ") as caught:
            check_budget("--memory", budget)
        assert f"{1.25 * free / 2**30:.2f} GiB, 1.25 times the {free / 2**30:.2f} GiB of memory" in str(caught.value)
        assert f"got {budget / 2**30:,.2f} GiB" in str(caught.value)


def test_where_the_system_does_not_tell_any_budget_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_system", lambda field: None)
    monkeypatch.setattr(memory, "_container_room", lambda: None)
    check_budget("memory", 2**50)
    assert free_memory() == 8 * 2**30


@pytest.mark.parametrize("text", ["", "8 apples", "-1GiB", "0%", "101%", "0", "GiB", "8GiBB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="memory must be a size like 8GiB or a share of free memory like 50%"):
        parse_memory(text)


@pytest.mark.parametrize("budget", [2**23, 2**24, 2**26, 2**30])
def test_a_plan_keeps_its_budget_and_fits_one_context(budget: int) -> None:
    plan = plan_cache(SPEC, budget, context_length=4096, sequences=8, snapshots=32)
    pages, slots = plan.tokens // SPEC.page_tokens, plan.sequences + plan.snapshots
    assert plan.bytes == SPEC.total_bytes(pages, slots) <= budget
    assert plan.tokens >= 4096
    assert 1 <= plan.sequences <= 8
    assert plan.snapshots <= 32


def test_more_memory_is_never_less_of_anything() -> None:
    plans = [plan_cache(SPEC, n * 2**21, context_length=2048, sequences=6, snapshots=9) for n in range(2, 40)]
    for one, more in pairwise(plans):
        assert more.sequences >= one.sequences
        assert more.snapshots >= one.snapshots
    assert (plans[-1].sequences, plans[-1].snapshots) == (6, 9)


def test_a_budget_under_one_context_names_both_numbers() -> None:
    with pytest.raises(
        ValueError, match=r"one sequence of 1,000,000 tokens needs .* MiB of cache, the memory budget is 8.0 MiB"
    ):
        plan_cache(SPEC, 2**23, context_length=1_000_000, sequences=1, snapshots=0)


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    names = [("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")][version == 1]
    root = tmp_path / "memory" if version == 1 else tmp_path
    root.mkdir(exist_ok=True)
    for name, value in zip(names, ("500000", "100000"), strict=True):
        (root / name).write_text(value)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    real = Path.read_text

    def read(path: Path, *arguments: Any, **options: Any) -> str:
        if str(path) == "/proc/self/cgroup":
            return "5:memory:/none\n" if version == 1 else "0::/none\n"
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", read)
    assert free_memory() == 400_000
    (root / names[0]).write_text("max")
    assert free_memory() > 400_000
