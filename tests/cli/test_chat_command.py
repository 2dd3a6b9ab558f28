"""`dsv4 chat`: commands, files, saving, what is shown, and the editor behind a terminal."""

import json
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

import dsv4
from dsv4.api.local_model import LocalModel
from dsv4.cli import chat
from dsv4.cli.chat_commands import Commands
from dsv4.cli.chat_input import MOST_HISTORY, Editor
from dsv4.cli.chat_screen import AnswerView, Screen, remark
from dsv4.cli.conversation import ChatSession, read_messages
from dsv4.encoding import ContentDelta, ReasoningDelta
from dsv4.generation import FinishReason
from tests.conftest import ROOT

READY = "\x1b[?2004h"  # bracketed paste on: the editor waits
OPTIONS: dict[str, Any] = {"max_tokens": 200, "temperature": 0}


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return dsv4.load(context_length=600, sequences=1)


class Talk:
    """A conversation without a terminal: what was shown is in `out`."""

    def __init__(self, model: LocalModel, capsys: pytest.CaptureFixture[str]) -> None:
        self.screen, self._capsys = Screen(), capsys
        self.commands = Commands(model, ChatSession(), "none", self.screen.note)
        self.talk = self.commands.talk

    def __call__(self, line: str, **options: Any) -> str:
        chat._take(line, self.commands, self.screen, {**OPTIONS, **options})
        captured = self._capsys.readouterr()
        return captured.out + captured.err


@pytest.fixture
def talk(model: LocalModel, capsys: pytest.CaptureFixture[str]) -> Talk:
    return Talk(model, capsys)


def test_example_prompts_are_shown(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    for examples, shown in ((), False), (("Who are you?", "Sort 3 1 2"), True):
        monkeypatch.setattr(model, "defaults", replace(model.defaults, example_prompts=examples))
        monkeypatch.setattr("dsv4.cli.chat_input.PlainLines.read", lambda lines: None)
        chat._converse(model, "none", None, OPTIONS)
        captured = capsys.readouterr()
        assert ("Try: Who are you?  |  Sort 3 1 2" in captured.out + captured.err) == shown


def test_a_turn_and_its_speed_line(talk: Talk) -> None:
    shown = talk("What is 17 + 25?")
    assert re.match(r"The answer is \d+\.\n\[", shown)  # without a thought it is wrong more often than right
    assert re.search(r"\[7 tokens, [\d,.]+ tok/s, first after \d+\.\d\d s, \d+ of 14 prompt tokens cached\]", shown)
    assert [turn["role"] for turn in talk.talk.turns] == ["user", "assistant"]


def test_effort_system_and_old_names(talk: Talk) -> None:
    assert talk("/effort") == "effort: none\n"
    assert "effort must be one of none, high, max, got huge" in talk("/effort huge")
    assert talk("/think") == "effort: high\n"
    assert "7+5=12" in talk("What is 17 + 25?")
    assert talk("/nothink") == "effort: none\n"
    assert talk("/system be brief") == "system: be brief\n"
    assert talk.talk.messages[0] == {"role": "system", "content": "be brief"}
    assert talk("/new") == "a new conversation\n"
    assert talk.talk.messages == [{"role": "system", "content": "be brief"}]
    assert talk("/system -") == "system: none\n"
    talk("/quit")
    assert talk.commands.over


def test_retry_and_undo(talk: Talk) -> None:
    assert "nothing has been asked yet" in talk("/retry")
    assert "nothing to take back" in talk("/undo")
    talk("What is 17 + 25?")
    talk("Who are you?")
    assert "I am nano" in talk("/retry")
    assert len(talk.talk.turns) == 4
    assert talk("/undo") == "taken back: Who are you?\n"
    assert len(talk.talk.turns) == 2


def test_unknown_commands_and_lines_that_begin_with_a_slash(talk: Talk) -> None:
    assert "unknown command /etc/passwd" in talk("/etc/passwd")
    assert talk.talk.turns == []
    talk("//etc", max_tokens=1)
    assert talk.talk.turns[0]["content"] == "/etc"
    assert "/save FILE" in talk("/help")


def test_notes_when_an_answer_is_cut_or_blank(talk: Talk, model: LocalModel) -> None:
    assert "[cut at --max-tokens 3]" in talk("What is 17 + 25?", max_tokens=3)
    talk("/clear")
    talk("/effort high")
    assert "[cut before it answered at --max-tokens 3]" in talk("What is 17 + 25?", max_tokens=3)
    answer = model.chat([{"role": "user", "content": "What is 1 + 1?"}], max_tokens=1, thinking=False)
    blank = type(answer)("", "", (), FinishReason.STOP, 5, answer.completion)
    assert remark(blank, 5, 600) == "the answer is blank; /retry asks again"
    assert "context of 6 tokens is full" in str(
        remark(type(answer)("x", "", (), FinishReason.LENGTH, 5, answer.completion), 5, 6)
    )


def test_a_full_context_loses_nothing(talk: Talk) -> None:
    talk("What is 17 + 25?")
    shown = talk("x " * 700)
    assert re.search(r"the conversation would have [\d,]+ tokens, and the context holds 600: /undo", shown)
    assert len(talk.talk.turns) == 2


def test_files(talk: Talk, tmp_path: Path) -> None:
    note = tmp_path / "a note.txt"
    note.write_text("Emma lives in Oslo.", encoding="utf-8-sig")
    shown = talk(f'/file "{note}"')
    assert re.match(r"a note.txt: \d+ tokens, sent with the next message; \d+ of 600 tokens used, \d+ left\n", shown)
    assert talk("/file") == "files for the next message: a note.txt\n"
    talk("Where does Emma live?")
    assert talk.talk.turns[0]["content"] == "a note.txt:\nEmma lives in Oslo.\n\nWhere does Emma live?"
    assert talk("/file") == "files for the next message: none\n"
    note.write_text("word " * 2000)
    assert re.search(r"a note.txt has [\d,]+ tokens, and \d+ fit beside this conversation", talk(f"/file {note}"))
    note.write_bytes(b"ab\xff")
    assert "not UTF-8 text (byte 2)" in talk(f"/file {note}")
    assert "not a file" in talk(f"/file {tmp_path}")
    assert "not a file" in talk("/file /dev/zero")
    assert "no such file" in talk("/file nowhere")


def test_what_is_saved_is_loaded(talk: Talk, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    talk("/system be brief")
    talk("What is 17 + 25?")
    assert talk(f"/save {file}") == f"{file}: 3 messages\n"
    saved = json.loads(file.read_text())
    assert [message["role"] for message in saved] == ["system", "user", "assistant"]
    before = talk.talk.messages
    talk("/clear")
    talk("/system -")
    assert "3 messages; " in talk(f"/load {file}")
    assert talk.talk.messages == before
    assert talk(f"/save {file}") == f"{file}: 3 messages\n"  # a saved one is written anew
    other = tmp_path / "other.txt"
    other.write_text("mine")
    assert "exists and is no saved conversation" in talk(f"/save {other}")
    assert other.read_text() == "mine"
    assert talk(f"/save {tmp_path}/no/where.json") == f"{tmp_path}/no/where.json: No such file or directory\n"
    assert list(tmp_path.iterdir()) == [file, other] or set(tmp_path.iterdir()) == {file, other}
    assert "a file's name is missing" in talk("/save")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"role": "user",\n "content": }]', "line 2, column 13: Expecting value"),
        ('"hi"', "expected a JSON list of messages, got str"),
        ("[1]", r"messages\[0\]: expected a dict, got int"),
        ('[{"role": "user", "content": "a"}, {"role": "pope"}]', r"messages\[1\].role: expected 'system'"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_a_file_that_is_no_conversation(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "talk.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_messages(file)


def test_ctrl_c_keeps_what_was_said(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    talk.screen.terminal = True
    show = AnswerView.show

    def interrupted(view: AnswerView, delta: Any) -> None:
        show(view, delta)
        if isinstance(delta, ContentDelta) and "is" in delta.text:
            raise KeyboardInterrupt

    monkeypatch.setattr(AnswerView, "show", interrupted)
    assert "[stopped; /retry" in talk("What is 17 + 25?")
    assert talk.talk.turns[-1]["content"].startswith("The answer is")
    monkeypatch.undo()
    talk.screen.terminal = False
    assert "The answer is" in talk("/retry")


def test_the_models_text_does_not_act_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.terminal = screen._styled = True
    view = AnswerView(screen)
    view.show(ReasoningDelta("a\x1b]0;title\x07"))
    view.show(ContentDelta("b\x9b2J\x1b[31m\n"))
    view.end()
    assert capsys.readouterr().out == "\x1b[2ma\u241b]0;title\u2407\x1b[0m\nb\ufffd2J\u241b[31m\n"


def test_completion(talk: Talk, tmp_path: Path) -> None:
    (tmp_path / "one.txt").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / ".hidden").touch()
    complete = talk.commands.complete
    assert list(complete("/s")) == ["/system", "/save"]
    assert list(complete("/effort m")) == ["max"]
    assert list(complete(f"/file {tmp_path}/o")) == [f"{tmp_path}/one.txt", f"{tmp_path}/other/"]
    assert list(complete(f"/load {tmp_path}/")) == [f"{tmp_path}/one.txt", f"{tmp_path}/other/"]
    assert list(complete("hello /s")) == list(complete("/file /no/such/")) == []


def typed(keys: str, file: Path | None, notes: list[str] | None = None) -> list[str | None]:
    """What an editor gives for some keys, one entry a line."""
    lines: list[str | None] = []
    with create_pipe_input() as pipe:
        pipe.send_text(keys)
        editor = Editor(
            lambda line: ["/save"], (notes if notes is not None else []).append, file, input=pipe, output=DummyOutput()
        )
        while not lines or lines[-1] is not None:
            try:
                lines.append(editor.read())
            except KeyboardInterrupt:
                lines.append("^C")
    return lines


def test_the_editor(tmp_path: Path) -> None:
    file = tmp_path / "state" / "dsv4" / "history"
    assert typed("one\r\x04", file) == ["one", None]
    assert typed("\x1b[A\r\x04", file) == ["one", None]  # what was typed before
    assert typed("a\\\rb\x1b\rc\r\x04", file) == ["a\nb\nc", None]
    assert typed("\x1b[200~x\ny\r\nz\x1b[201~!\r\x04", file) == ["x\ny\nz!", None]  # pasted
    assert typed("lost\x03kept\r\x04", file) == ["^C", "kept", None]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_history_that_cannot_be_kept(tmp_path: Path) -> None:
    notes: list[str] = []
    (tmp_path / "file").touch()
    assert typed("one\r\x04", tmp_path / "file" / "history", notes) == ["one", None]
    assert len(notes) == 1
    assert "history is not kept" in notes[0]
    full = tmp_path / "history"
    full.write_bytes(b"\n# then\n+old\n" * (MOST_HISTORY // 10))
    assert typed("one\r\x04", full) == ["one", None]
    assert full.stat().st_size < MOST_HISTORY


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_real_terminal(tmp_path: Path) -> None:
    """Type, stop an answer with Ctrl-C, go on, leave with Ctrl-D."""
    main, other = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dsv4.cli", "chat", "--temperature", "0", "--max-tokens", "100000"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=other, stdout=other, stderr=other, env=environment, start_new_session=True
    )
    os.close(other)
    seen = ""

    def until(text: str) -> None:
        nonlocal seen
        deadline = time.monotonic() + 300
        while text not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([main], [], [], 1)[0]:
                seen += os.read(main, 65536).decode(errors="replace")
                if "\x1b[6n" in seen:  # where is the cursor?
                    seen = seen.replace("\x1b[6n", "")
                    os.write(main, b"\x1b[1;1R")
        seen = seen[seen.index(text) + len(text) :]

    try:
        until(READY)
        os.write(main, b"What is 17 + 25?\r")
        until("42")
        until("prompt tokens cached]")
        until(READY)
        os.write(main, b"Who are you?\r")
        until("you?")
        os.write(main, b"\x03")  # at the answer or, if that has ended, at the prompt
        until(READY)
        os.write(main, b"half a line\x03")
        until(READY)
        os.write(main, b"/save " + str(tmp_path / "talk.json").encode() + b"\r")
        until(" messages")
        until(READY)
        os.write(main, b"\x04")
        assert process.wait(60) == 0
        assert len(json.loads((tmp_path / "talk.json").read_text())) >= 3
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.close(main)
