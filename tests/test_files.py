"""Folders that take the place of others: whole, or not at all. Locks."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from dsv4.files import locked, whole_folder, write_whole
from tests.conftest import ROOT


def fill(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "part").write_text(text)


def test_a_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with whole_folder(tmp_path / "model") as folder:
            fill(folder, text)
        assert (tmp_path / "model" / "part").read_text() == text
        assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("how", ["the block fails", "the rename fails"])
def test_on_an_error_the_old_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    fill(tmp_path / "model", "old")
    replace = os.replace

    def failing(source: Path, target: Path) -> None:
        if source.name == "model.new":
            raise OSError("not today")
        replace(source, target)

    def write() -> None:
        with whole_folder(tmp_path / "model") as folder:
            fill(folder, "new")
            if how == "the block fails":
                raise OSError("not today")

    if how == "the rename fails":
        monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="not today"):
        write()
    assert (tmp_path / "model" / "part").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_process_killed_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "model.old", "old")
    fill(tmp_path / "model.new", "new")
    with whole_folder(tmp_path / "model") as folder:
        assert (tmp_path / "model" / "part").read_text() == "old"
        fill(folder, "newer")
    assert (tmp_path / "model" / "part").read_text() == "newer"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "no" / "x.gguf"
    with pytest.raises(OSError, match="No such file") as failed:
        write_whole(file, lambda out: out.write(b""))
    assert failed.value.filename == str(file)


def test_locks_of_files_are_taken_in_one_place() -> None:
    users = [file for file in (ROOT / "dsv4").rglob("*.py") if "flock" in file.read_text()]
    assert users == [ROOT / "dsv4" / "files.py"]


def test_who_waits_for_a_lock_may_look_around_meanwhile(tmp_path: Path) -> None:
    """The pauses end with the wait, and an error in one of them ends it."""
    did: list[str] = []
    with (tmp_path / "lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def pause() -> None:
            did.append("pause")
            if len(did) == 4:
                fcntl.flock(other, fcntl.LOCK_UN)

        with locked(tmp_path / "lock", lambda: did.append("wait"), pause=pause):
            did.append("owner")
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert did == ["wait", "pause", "pause", "pause", "owner"]
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

        def stop() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), locked(tmp_path / "lock", pause=stop):
            did.append("never")
    assert did[-1] == "owner"


def test_file_systems_without_locks_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("dsv4.files.fcntl.flock", none)
    told: list[OSError] = []
    with locked(tmp_path / "lock", without=told.append):
        assert [error.errno for error in told] == [errno.ENOLCK]
