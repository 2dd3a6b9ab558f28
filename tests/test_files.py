"""Folders that take the place of others: whole, or not at all."""

import os
from pathlib import Path

import pytest

from dsv4.files import whole_folder, write_whole


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
