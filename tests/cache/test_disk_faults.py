"""What may only save time costs no answer: every way the folder of prefixes can break, and what it leaves to others."""

import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from dsv4.cache import disk as disk_module
from dsv4.cache.disk import DiskTier
from dsv4.engine import Engine
from dsv4.generation import FinishReason, SamplingParams, collect
from dsv4.testing.tiny import tiny_config, tiny_model
from tests.cache.test_disk import check, content, files, store, tier

PROMPT = [5] * 300
SHORT = SamplingParams(max_tokens=5, temperature=0)


def drop_table(folder: Path) -> None:
    with sqlite3.connect(folder / "index.sqlite") as db:
        db.execute("DROP TABLE files")


def damage_index(folder: Path) -> None:
    for name in ("index.sqlite-wal", "index.sqlite-shm"):
        (folder / name).unlink(missing_ok=True)
    (folder / "index.sqlite").write_bytes(b"this is no database" * 1000)


def odd_rows(folder: Path) -> None:
    with sqlite3.connect(folder / "index.sqlite") as db:
        db.execute("UPDATE files SET length = 'many' WHERE length > 0")


def cut_files(folder: Path) -> None:
    for path in files(folder):
        path.write_bytes(path.read_bytes()[:3])


def pipes(folder: Path) -> None:
    for path in files(folder):
        path.unlink()
        os.mkfifo(path)


def folders(folder: Path) -> None:
    for path in files(folder):
        path.unlink()
        path.mkdir()


def engine_on(folder: Path) -> Engine:
    config = tiny_config(num_hidden_layers=2, compress_ratios=(4, 128, 0), n_routed_experts=2)
    disk = DiskTier(folder, budget=2**30, fingerprint="tiny")
    engine = Engine(tiny_model(config), context_length=512, sequences=2, disk=disk)
    engine.ends = frozenset()
    return engine


@pytest.mark.parametrize("reader", ["find", "read", "missing", "put_end", "chain"])
@pytest.mark.parametrize(
    "error", [sqlite3.DatabaseError("file is not a database"), OSError(5, "Input/output error"), TypeError("odd")]
)
def test_whatever_the_disk_raises_the_request_is_computed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    reader: str,
    error: Exception,
) -> None:
    engine = engine_on(tmp_path)
    wanted = collect(engine.generate(PROMPT, SHORT))
    assert engine.cache.disk is not None
    engine.cache.disk.flush()
    engine.cache.prefixes.clear()

    def broken(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(engine.cache.disk, reader, broken)
    for prompt in (PROMPT, [*PROMPT, 4], PROMPT):
        got = collect(engine.generate(prompt, SHORT))
        assert got.finish is FinishReason.LENGTH
        assert got.tokens == wanted.tokens or prompt is not PROMPT
    assert capfd.readouterr().err.count("prefix_disk_off") == 1
    assert engine.cache.disk_off
    engine.close()
    assert engine.check_integrity()


@pytest.mark.parametrize("damage", [drop_table, damage_index, odd_rows, cut_files, pipes, folders])
def test_a_folder_that_breaks_while_it_is_used_costs_no_answer(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    engine = engine_on(tmp_path)
    wanted = collect(engine.generate(PROMPT, SHORT))
    assert engine.cache.disk is not None
    engine.cache.disk.flush()
    engine.cache.prefixes.clear()
    damage(tmp_path)
    assert collect(engine.generate(PROMPT, SHORT)).tokens == wanted.tokens
    assert collect(engine.generate(PROMPT, SHORT)).tokens == wanted.tokens
    engine.close()
    again = engine_on(tmp_path)
    assert collect(again.generate(PROMPT, SHORT)).tokens == wanted.tokens
    again.close()


def test_a_busy_index_is_a_miss_and_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_on(tmp_path)
    wanted = collect(engine.generate(PROMPT, SHORT))
    assert engine.cache.disk is not None
    engine.cache.disk.flush()
    engine.cache.prefixes.clear()
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY

    class Busy:
        def execute(self, *arguments: object) -> None:
            raise error

    real = engine.cache.disk._reader
    monkeypatch.setattr(engine.cache.disk, "_reader", Busy())
    assert collect(engine.generate(PROMPT, SHORT)) == wanted
    engine.cache.prefixes.clear()
    monkeypatch.setattr(engine.cache.disk, "_reader", real)
    assert collect(engine.generate(PROMPT, SHORT)).reused == 299
    engine.close()


def test_a_folder_that_cannot_be_used_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none")):
        with pytest.raises(ValueError, match=r"the folder for prefixes '.*' cannot be used: [A-Z]"):
            tier(path)
    tier(tmp_path / "good").close()
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL

    class Full:
        def execute(self, *arguments: object) -> None:
            raise full

        def close(self) -> None: ...

    before = (tmp_path / "good" / "index.sqlite").read_bytes()
    monkeypatch.setattr(sqlite3, "connect", lambda *arguments, **options: Full())
    with pytest.raises(ValueError, match="cannot be used: database or disk is full"):
        tier(tmp_path / "good")
    assert (tmp_path / "good" / "index.sqlite").read_bytes() == before  # a full disk is no damage


def test_only_its_user_may_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        disk = tier(tmp_path / "prefixes")
        store(disk, list(range(300)))
    finally:
        os.umask(before)
    for path in (tmp_path / "prefixes").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert (tmp_path / "prefixes").stat().st_mode & 0o077 == 0
    disk.close()


def test_room_is_left_to_others_and_given_back_when_they_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    disk, block, total = tier(tmp_path), 1000, 100_000_000
    free = [20_000_000]

    def statvfs(path: Path) -> SimpleNamespace:
        used = sum(file.stat().st_size for file in files(tmp_path))
        return SimpleNamespace(f_bavail=(free[0] - used) // block, f_frsize=block, f_blocks=total // block)

    monkeypatch.setattr(os, "statvfs", statvfs)
    prefixes = [[n] * 100 for n in range(12)]
    for tokens in prefixes[:10]:
        store(disk, tokens)
    assert disk.counts.evicted == 0
    free[0] = 10_000_000 + 40_000  # a tenth is 10 MB: seven files of 5 kB still fit
    store(disk, prefixes[10])
    assert 0 < len(files(tmp_path)) <= 8
    assert check(disk, prefixes[10]) == 100
    free[0] = 10_000_000  # others have taken everything else
    for tokens in prefixes:
        store(disk, tokens)
    assert files(tmp_path) == []
    assert disk.counts.failed_writes == 12
    assert capfd.readouterr().err.count("prefix_not_written") == 1
    free[0] = total
    store(disk, prefixes[0])
    assert check(disk, prefixes[0]) == 100
    disk.close()


def test_a_disk_that_hangs_does_not_hang_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_module, "_PENDING", 12_000)
    monkeypatch.setattr(disk_module, "_PATIENCE", 0.01)
    disk, go_on, real = tier(tmp_path), threading.Event(), os.fsync

    def stuck(descriptor: int) -> None:
        assert go_on.wait(60)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", stuck)
    for n in range(20):
        disk.put_end(disk.chain([n] * 100, "owner"), content([n] * 100))
    assert disk.counts.dropped == 17
    go_on.set()
    disk.flush()
    assert disk.counts.written == 3
    store(disk, [50] * 100)
    assert check(disk, [50] * 100) == 100
    disk.close()


def test_find_does_not_grow_with_what_is_stored(tmp_path: Path) -> None:
    """Counted in instructions of SQLite's machine: many ends behind one page, of few lengths and of many."""
    disk, tokens = tier(tmp_path), [7] * 900
    store(disk, tokens[:300])
    root = disk.chain(tokens, "owner").root

    def work() -> int:
        count = [0]
        disk._reader.set_progress_handler(lambda: count.__setitem__(0, count[0] + 1), 10)
        assert check(disk, tokens) == 300
        assert check(disk, [1, 2, 3]) == 0
        disk._reader.set_progress_handler(None, 0)
        return count[0]

    def more(count: int) -> None:
        rows = [(os.urandom(20), root, 200 + n % 50, 10, 0.0) for n in range(count)]
        page = disk.chain(tokens[:300], "owner").base
        rows += [(os.urandom(20), page, 257 + n % 255, 10, 0.0) for n in range(count)]
        with disk._lock, disk._db:
            disk._db.executemany("INSERT INTO files VALUES (?, ?, ?, ?, ?)", rows)

    more(1000)
    few = work()
    more(9000)
    assert work() <= 2 * few
    disk.close()
