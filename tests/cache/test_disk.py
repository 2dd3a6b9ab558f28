"""Prefixes on disk: found again by another process, never wrong, whatever happens to the folder or the writer."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsv4.cache.disk import DiskTier

PAGE = 256
# a writer that stores prefixes for ever; every content can be computed from its tokens
WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.cache.test_disk import content, tier, tokens_of
folder, seed = Path(sys.argv[1]), int(sys.argv[2])
disk = tier(folder)
print("ready", flush=True)
for number in range(seed, 10**9, 2):
    tokens = tokens_of(number)
    chain = disk.chain(tokens, "owner")
    for i, key in enumerate(chain.pages):
        if not disk.has(key):
            disk.put_page(key, content(tokens[: (i + 1) * 256]))
    disk.put_end(chain, content(tokens))
    disk.flush()
    print(number, flush=True)
"""


def tier(folder: Path, fingerprint: str = "model", budget: int = 2**28) -> DiskTier:
    return DiskTier(folder, budget=budget, fingerprint=fingerprint)


def tokens_of(number: int) -> list[int]:
    """Prefixes that share their beginnings in many ways."""
    return [(number >> (i // 200)) % 3 for i in range(100 + number % 900)]


def content(tokens: list[int]) -> bytes:
    return random.Random(repr(tokens)).randbytes(5000)


def store(disk: DiskTier, tokens: list[int], owner: str = "owner") -> None:
    chain = disk.chain(tokens, owner)
    for i, key in enumerate(chain.pages):
        disk.put_page(key, content(tokens[: (i + 1) * PAGE]))
    disk.put_end(chain, content(tokens))
    disk.flush()


def check(disk: DiskTier, tokens: list[int], owner: str = "owner") -> int:
    """The length of what is found; its content must be right."""
    found = disk.find(tokens, owner)
    if found is None:
        return 0
    data = disk.read(found)
    if data is None:
        return 0
    assert data.end == content(tokens[: found.length])
    for i, page in enumerate(data.pages):
        assert page == content(tokens[: (i + 1) * PAGE])
    return found.length


def files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("??/*") if path.is_file()]


def test_another_process_finds_the_longest_prefix(tmp_path: Path) -> None:
    tokens = list(range(900))
    first = tier(tmp_path)
    store(first, tokens[:300])
    store(first, tokens[:700])
    first.close()
    second = tier(tmp_path)
    assert check(second, tokens) == 700
    assert check(second, tokens[:699]) == 300
    assert check(second, [*tokens[:400], 5]) == 300
    assert check(second, tokens[:299]) == 0
    second.close()


@pytest.mark.parametrize(("fingerprint", "owner"), [("other model", "owner"), ("model", "other owner")])
def test_models_and_owners_do_not_meet(tmp_path: Path, fingerprint: str, owner: str) -> None:
    disk = tier(tmp_path)
    store(disk, list(range(300)))
    disk.close()
    other = tier(tmp_path, fingerprint)
    assert check(other, list(range(300)), owner) == 0
    other.close()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "foreign"])
def test_a_damaged_file_is_a_miss_and_is_forgotten(tmp_path: Path, damage: str) -> None:
    disk, tokens = tier(tmp_path), list(range(300))
    store(disk, tokens)
    for path in files(tmp_path):
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        changed = {"flip": bytes(raw), "cut": bytes(raw[:-9]), "empty": b"", "foreign": b"x" * len(raw)}
        path.unlink() if damage == "gone" else path.write_bytes(changed[damage])
    assert check(disk, tokens) == 0
    store(disk, tokens)
    assert check(disk, tokens) == 300
    disk.close()


def test_the_budget_holds_and_the_least_recently_used_go_first(tmp_path: Path) -> None:
    disk = tier(tmp_path, budget=2**20)
    prefixes = [[n] * 100 for n in range(250)]
    for n, tokens in enumerate(prefixes):
        store(disk, tokens)
        if n % 10 == 0:
            assert check(disk, prefixes[0]) == 100
            time.sleep(0.002)  # uses are ordered by the clock
    assert disk.total_bytes <= 2**20
    assert sum(path.stat().st_size for path in files(tmp_path)) == disk.total_bytes
    assert check(disk, prefixes[0]) == check(disk, prefixes[-1]) == 100
    assert check(disk, prefixes[1]) == 0
    assert disk.counts.evicted > 0
    disk.close()


def test_a_full_disk_loses_the_record_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, tokens = tier(tmp_path), list(range(300))
    store(disk, tokens[:100])
    real = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    store(disk, tokens)
    assert disk.counts.failed_writes == 2
    assert check(disk, tokens) == 100
    monkeypatch.setattr(os, "fsync", real)
    store(disk, tokens)
    assert check(disk, tokens) == 300
    assert not list(tmp_path.glob("??/*.tmp"))
    disk.close()


def test_a_broken_index_is_begun_anew(tmp_path: Path) -> None:
    disk = tier(tmp_path)
    store(disk, list(range(300)))
    disk.close()
    (tmp_path / "index.sqlite").write_bytes(b"this is no database" * 100)
    again = tier(tmp_path)
    assert check(again, list(range(300))) == 0
    store(again, list(range(300)))
    assert check(again, list(range(300))) == 300
    again.close()


def test_old_files_nobody_knows_are_swept_and_new_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    old, new = tmp_path / "ab" / ("ab" * 20), tmp_path / "ab" / "cd.1.tmp"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    tier(tmp_path).close()
    assert not old.exists()
    assert new.exists()


def test_a_budget_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the disk budget must be at least 1 MiB, got 5 bytes"):
        tier(tmp_path, budget=5)


def kill_writers(folder: Path, kills: int, writers: int) -> None:
    """Start writers, kill them at random moments; afterwards all they reported (but the last) is there and right."""
    root = str(Path(__file__).resolve().parents[2])
    rng = random.Random(kills)
    seed = 0
    for _ in range(kills):
        running = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER.format(root=root), str(folder), str(seed + i)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for i in range(writers)
        ]
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.12))
        for process in running:
            process.send_signal(signal.SIGKILL)
        lines = [process.communicate()[0].splitlines() for process in running]
        disk = tier(folder)
        reported = [int(line) for part in lines for line in part if line.isdigit()]
        for number in reported:
            tokens = tokens_of(number)
            assert check(disk, tokens) == len(tokens), "a finished record is lost"
        for number in range(max(reported, default=seed), max(reported, default=seed) + 6):
            check(disk, tokens_of(number))
        assert disk.counts.corrupt == 0
        disk.close()
        seed = max(reported, default=seed) + 1


@pytest.mark.parametrize("writers", [1, 2])
def test_killed_writers_leave_no_wrong_record(tmp_path: Path, writers: int) -> None:
    kill_writers(tmp_path, kills=2, writers=writers)


@pytest.mark.slow
@pytest.mark.parametrize("writers", [1, 2])
def test_writers_killed_200_times_leave_no_wrong_record(tmp_path: Path, writers: int) -> None:
    kill_writers(tmp_path, kills=100, writers=writers)
