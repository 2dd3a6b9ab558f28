"""Flags and files are judged before a model is loaded, and names are shown as they are."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.progress import TextColumn

from dsv4.cli import sft_run
from dsv4.cli.__main__ import main
from dsv4.cli.folders import default_model_folder
from dsv4.cli.progress import RunProgress
from tests.cli.test_sft import write_base, write_talks

Command = Callable[..., int | str | None]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """`dsv4 ...` in this process, which may load no model and start none; the exit code."""

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("dsv4.api.loading.load", loaded)
    monkeypatch.setattr("dsv4.verify.own_server.subprocess.Popen", loaded)
    monkeypatch.setattr(sft_run, "_trainer", loaded)

    def run(*arguments: object) -> int | str | None:
        monkeypatch.setattr(sys, "argv", ["dsv4", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code

    return run


def test_before_a_model_is_loaded(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.jsonl").write_text("{\n")
    silent = tmp_path / "silent"
    silent.mkdir()
    (silent / "config.json").symlink_to(default_model_folder() / "config.json")
    base, talks = write_base(tmp_path / "base"), write_talks(tmp_path / "talks.jsonl")
    place = ("--folder", tmp_path / "run", "--live", "-1")
    for words, message in (
        (("chat", "--effort", "low"), "--effort must be one of none, high, max, got low"),
        (("chat", silent), "silent: has no tokenizer.json"),
        (("generate", silent, "--prompt", "x"), "silent: has no tokenizer.json"),
        (("serve", silent, "--port", "0", "--ledger", "none"), "silent: has no tokenizer.json"),
        (("verify", "nano", "--fixtures", tmp_path / "broken.jsonl"), "broken.jsonl, line 1: no fixture"),
        (("verify", "nano", "--fixtures", tmp_path / "none.jsonl"), "none.jsonl"),
        (("eval", "nano", "--suite", "gsm8k", "--data", tmp_path / "none"), "--data must be a file"),
        (
            ("sft", "--init", base, "--data", talks, "--held-out", tmp_path / "broken.jsonl", *place),
            "broken.jsonl, line 1",
        ),
    ):
        assert command(*words) == 1, words
        assert message in capsys.readouterr().err


def test_brackets_in_names_are_no_markup(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model[bold]x"
    folder.mkdir()
    for file in default_model_folder().iterdir():
        (folder / file.name).symlink_to(file)
    assert command("inspect", folder) in (None, 0)
    assert "model[bold]x" in capsys.readouterr().out
    with RunProgress(1) as bar:
        bar._bar.update(bar._task, phase="[bold]x")
        column = bar._bar.columns[0]
        assert isinstance(column, TextColumn)
        assert str(column.render(bar._bar.tasks[0])) == "[bold]x"
