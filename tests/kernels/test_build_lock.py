"""Of processes without compiled kernels one compiles them, and the others wait for it."""

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dsv4.files import locked
from dsv4.kernels.native import build

# counts its calls, and waits for a file before the first one ends
COMPILER = """#!/bin/sh
if [ "$1" = --version ]; then echo "test 1"; exit 0; fi
echo "$@" >> "$FOLDER/calls"
while [ ! -e "$FOLDER/go" ]; do sleep 0.02; done
[ -e "$FOLDER/broken" ] && exit 1
while [ "$1" != -o ]; do shift; done
echo made > "$2"
"""
HOLDER = """
import fcntl, sys, time
opened = open(sys.argv[1], "a")
fcntl.flock(opened, fcntl.LOCK_EX)
print(flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    compiler = tmp_path / "cxx"
    compiler.write_text(COMPILER)
    compiler.chmod(0o700)
    for name, value in {"CXX": compiler, "FOLDER": tmp_path, "XDG_CACHE_HOME": tmp_path}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(build, "packaged_library", lambda isa, sources: (None, ""))
    return tmp_path


class Asks(threading.Thread):
    """Asks for the library, as another process would."""

    def __init__(self) -> None:
        super().__init__()
        self.path: Path | None = None
        self.error: build.BuildError | None = None
        self.start()

    def run(self) -> None:
        try:
            self.path = build.library_path("portable")
        except build.BuildError as error:
            self.error = error


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


def calls(folder: Path) -> int:
    file = folder / "calls"
    return len(file.read_text().splitlines()) if file.exists() else 0


SOURCES = len([*build.KERNELS.glob("*/*.cpp")])
WAITING = "native kernels (portable): another process compiles the kernels, waiting"


def two(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[Asks]:
    """Two that ask, of which one compiles and the other waits; both are done."""
    said = ""

    def waits() -> bool:
        nonlocal said
        said += capsys.readouterr().err
        return WAITING in said

    one = Asks()
    wait_for(lambda: calls(folder) > 0)
    other = Asks()
    wait_for(waits)
    (folder / "go").touch()
    one.join()
    other.join()
    return [one, other]


def test_the_second_one_waits_and_takes_what_was_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = two(folder, capsys)
    assert one.path == other.path
    assert one.path is not None
    assert one.path.read_text() == "made\n"
    assert calls(folder) == SOURCES + 1  # and the link


def test_the_second_one_compiles_where_the_first_one_failed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "broken").touch()
    one, other = two(folder, capsys)
    assert one.error is not None
    assert other.error is not None
    assert calls(folder) > SOURCES


def test_folders_of_killed_builds_are_removed(folder: Path) -> None:
    cache = build.cache_folder()
    cache.mkdir(parents=True)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (cache / "tmplink").symlink_to(elsewhere)
    days = 86_400
    kept = {"tmpnow": 0, "tmphours": days // 2, "other": 9 * days}
    for name, age in {**kept, "tmpold": 2 * days}.items():
        (cache / name).mkdir()
        (cache / name / "part.o").touch()
        os.utime(cache / name, (time.time() - age,) * 2)
    os.utime(elsewhere, (time.time() - 9 * days,) * 2)
    (folder / "go").touch()
    asks = Asks()
    asks.join()
    assert asks.error is None
    assert {path.name for path in cache.iterdir() if path.is_dir()} == {*kept, "tmplink"}
    assert all((cache / name / "part.o").exists() for name in kept)
    assert elsewhere.is_dir()


def test_a_folder_that_another_process_removes_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmpold").mkdir()

    def removed(path: Path) -> bool:
        path.rmdir()
        return False

    monkeypatch.setattr(Path, "is_symlink", removed)
    build._remove_left_behind(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    lock, waited = tmp_path / "lock", []
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()

        def kill() -> None:
            waited.append(True)
            os.kill(holder.pid, 9)

        with locked(lock, kill):
            pass
    assert waited == [True]


def test_without_locks_each_compiles_for_itself(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("dsv4.files.fcntl.flock", none)
    one, other = Asks(), Asks()
    (folder / "go").touch()
    one.join()
    other.join()
    assert one.path == other.path
    assert one.path is not None
    assert one.path.read_text() == "made\n"


def test_a_folder_that_cannot_be_written_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "dsv4").touch()
    with pytest.raises(build.BuildError, match=r"cannot write .*dsv4-portable-"):
        build.library_path("portable")
