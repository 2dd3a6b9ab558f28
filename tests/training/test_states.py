"""Two states, each whole: cut or changed ones, full disks."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv4.files import write_whole
from dsv4.training.logbook import Logbook, read_log
from dsv4.training.states import PREVIOUS_FILE, STATE_FILE, find_state, load_state, write_state
from tests.training.runs import raw_recipe, trainer


def state(step: int) -> dict[str, Any]:
    return {"step": step, "weight": torch.full((1000,), float(step))}


def test_the_one_before_stays(tmp_path: Path) -> None:
    assert find_state(tmp_path) is None
    for step in range(3):
        write_state(tmp_path, state(step))
    assert [load_state(tmp_path / name)["step"] for name in (STATE_FILE, PREVIOUS_FILE)] == [2, 1]
    assert sorted(f.name for f in tmp_path.iterdir()) == [PREVIOUS_FILE, STATE_FILE]


def damage_cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size * 7 // 10)


def damage_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[content.index(torch.full((9,), 1.0).numpy().tobytes()) + 2] ^= 1
    file.write_bytes(content)


def damage_all(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_cut, damage_byte, damage_all])
def test_a_damaged_one_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any) -> None:
    write_state(tmp_path, state(0))
    write_state(tmp_path, state(1))
    damage(tmp_path / STATE_FILE)
    found = find_state(tmp_path)
    assert found is not None
    assert load_state(found)["step"] == 0
    assert "state.pt is damaged" in caplog.text
    assert "going on from the state before" in caplog.text
    write_state(tmp_path, state(2))
    assert load_state(tmp_path / PREVIOUS_FILE)["step"] == 0
    damage_all(tmp_path / STATE_FILE)
    damage_all(tmp_path / PREVIOUS_FILE)
    with pytest.raises(ValueError, match="the run cannot go on"):
        find_state(tmp_path)


class Full:
    """`os.fsync` of a disk that has no room while `on`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on, real = True, os.fsync

        def fsync(file: int) -> None:
            if self.on:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(file)

        monkeypatch.setattr(os, "fsync", fsync)


def test_a_full_disk_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_state(tmp_path, state(0))
    Full(monkeypatch)
    with pytest.raises(OSError, match=r"No space left on device: .*state\.pt"):
        write_state(tmp_path, state(1))
    assert [f.name for f in tmp_path.iterdir()] == [STATE_FILE]
    assert load_state(tmp_path / STATE_FILE)["step"] == 0


def test_torch_does_not_hide_why_a_stream_failed(tmp_path: Path) -> None:
    class Small:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def flush(self) -> None:
            pass

    def save(out: Any) -> None:
        out._stream = Small(out._stream)
        torch.save(state(0), out)

    with pytest.raises(OSError, match="No space left on device"):
        write_whole(tmp_path / STATE_FILE, save)
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on_without_room_and_saves_when_there_is_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = Full(monkeypatch)
    run = trainer(tmp_path, run={**raw_recipe()["run"], "save_seconds": 0.0})
    lines = run.run()
    next(lines)
    next(lines)
    assert "no state was written" in caplog.text
    assert not (tmp_path / STATE_FILE).exists()
    full.on = False
    next(lines)
    assert trainer(tmp_path).step == 2
    full.on = True
    with pytest.raises(OSError, match="No space left"):  # at the end there is nothing to wait for
        list(lines)
    assert trainer(tmp_path).step == 2


def test_lines_wait_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    log = Logbook(tmp_path / "log.jsonl")
    log.write({"step": 0, "next": 1.0})
    real = log._out

    class Stuck:
        """Takes three bytes and then no more."""

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def write(self, data: Any) -> int:
            if len(data) < 10:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real.write(data[: len(data) - 5])

    log._out = Stuck()  # type: ignore
    log.write({"step": 1, "next": float("nan")})
    log.write({"step": 2, "next": 1.0})
    assert caplog.text.count("lines of the log wait in memory") == 1
    assert [line["step"] for line in read_log(log.file)] == [0]
    log._out = real
    log.close()
    assert [line["step"] for line in read_log(log.file)] == [0, 1, 2]
    assert [json.loads(line)["next"] for line in log.file.read_text().splitlines()] == [1.0, None, 1.0]


def test_a_tracker_that_fails_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def log(self, numbers: dict[str, float], step: int) -> None:
            raise RuntimeError("no connection")

        def close(self) -> None:
            raise AssertionError("must not be asked again")

    log = Logbook(tmp_path / "log.jsonl", 0, (Broken(),))
    for step in range(3):
        log.write({"step": step})
    log.close()
    assert caplog.text.count("Broken failed and gets no more numbers: no connection") == 1
