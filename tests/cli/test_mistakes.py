"""Whatever is typed wrongly, and whatever the machine refuses, is told in one sentence: no verb shows a traceback."""

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from dsv4.cli import serve
from dsv4.cli.__main__ import main, sentence, tell_notes
from dsv4.cli.folders import default_model_folder
from dsv4.cli.progress import console
from dsv4.engine.step import UnfitError
from tests.conftest import ROOT

NANO = str(default_model_folder())


class Run:
    """`dsv4 ...` in this process: the exit code, stdout and stderr."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._capsys, self._monkeypatch, self.folder = capsys, monkeypatch, folder

    def __call__(self, *arguments: str, text: str = "") -> tuple[int | str | None, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["dsv4", *(a.replace("TMP", str(self.folder)) for a in arguments)])
        self._monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        with pytest.raises(SystemExit) as ended:
            main()
        captured = self._capsys.readouterr()
        return ended.value.code, captured.out, captured.err.replace(str(self.folder), "TMP")


@pytest.fixture
def dsv4(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    def would_serve(*_: object) -> None:
        raise AssertionError("the server was started")

    monkeypatch.setattr(serve, "run_server", would_serve)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "config").mkdir()
    shutil.copy(default_model_folder() / "config.json", tmp_path / "config")
    return Run(capsys, monkeypatch, tmp_path)


SAMPLING = [
    ("--max-tokens", "0", "--max-tokens must be at least 1, got 0"),
    ("--max-tokens", "-1", "--max-tokens must be at least 1, got -1"),
    ("--temperature", "nan", "--temperature must be in [0, 2], got nan"),
    ("--temperature", "-1", "--temperature must be in [0, 2], got -1.0"),
    ("--top-p", "0", "--top-p must be in (0, 1], got 0.0"),
    ("--top-p", "inf", "--top-p must be in (0, 1], got inf"),
]


@pytest.mark.parametrize("verb", ["generate --prompt x", "chat"])
@pytest.mark.parametrize(("flag", "value", "message"), SAMPLING)
def test_sampling_flags(dsv4: Run, verb: str, flag: str, value: str, message: str) -> None:
    assert dsv4(*verb.split(), flag, value) == (1, "", f"dsv4: {message}\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--port -1", "port must be in [0, 65535], got -1"),
        ("--port 65536", "port must be in [0, 65535], got 65536"),
        ("--requests 0", "--requests must be at least 1, got 0"),
        ("--drain -1", "--drain must be at least 0, got -1"),
        ("--context 0", "--context must be at least 1, got 0"),
        ("--sequences 0", "--sequences must be at least 1, got 0"),
        ("--slowdown 1", "--slowdown must be more than 1, or 0 for no limit, got 1"),
        ("--slowdown nan", "--slowdown must be more than 1, or 0 for no limit, got nan"),
        ("--threads 0", "--threads must be in [1, 4096], got 0"),
        ("--threads 100000", "--threads must be in [1, 4096], got 100000"),
        ("--prefix-disk 1KiB", "--prefix-disk must be at least 1MiB, got 1KiB"),
        ("--queue -5", "--queue must be at least 1, got -5"),
        ("--interval 0", "--interval must be a positive multiple of 256, got 0"),
        ("--snapshots -1", "--snapshots must be at least 0, got -1"),
        ("--memory x", "--memory must be a size like 8GiB or a share of free memory like 50%, got 'x'"),
        ("--memory 10TiB", "--memory must be at most "),
        ("--expert-memory 0", "--expert-memory must be a size like 8GiB or a share of free memory like 50%, got '0'"),
        (
            "--expert-memory -1GiB",
            "--expert-memory must be a size like 8GiB or a share of free memory like 50%, got '-1GiB'",
        ),
        ("--context 9000000", "--context must be in [1, 1048576], got 9000000"),
        ("--mode fp32 --expert-memory 1GiB", "--expert-memory needs mode 'release' and a checkpoint with FP4 or FP8"),
        ("--mode release --expert-memory 1000", "--expert-memory must be at least "),
        ("--prefix-disk -1", "--prefix-disk must be a size like 8GiB or a share of free memory like 50%, got '-1'"),
        ("--host 0.0.0.0", "host must be an address of this machine only"),
        ("--keys TMP/nowhere", "TMP/nowhere: No such file or directory"),
        ("--keys TMP/bytes", "TMP/bytes: not a text in UTF-8 (invalid start byte at byte 0)"),
        ("--prices TMP/file", "TMP/file: not a TOML file"),
        ("--prices TMP/folder", "TMP/folder: Is a directory"),
        ("--ledger TMP/bytes", "TMP/bytes: cannot be used as a ledger"),
        ("--history TMP/file", "--history TMP/file: must be a folder, is a file"),
        ("--store TMP/file", "--store TMP/file: must be a folder, is a file"),
        ("--prefix-dir TMP/file", "the folder for prefixes 'TMP/file' cannot be used: TMP/file is a file"),
    ],
)
def test_flags_of_the_server(dsv4: Run, flags: str, message: str) -> None:
    port = () if "--port" in flags else ("--port", "0")
    code, out, err = dsv4("serve", *port, *flags.split())
    assert (code, out) == (1, "")
    (told,) = [line for line in err.splitlines() if not line.startswith(("nano: ", "memory: "))]
    assert told.startswith(f"dsv4: {message}")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("inspect nano --plot f.png", "--plot writes SVG: the name must end in .svg, got f.png"),
        ("inspect nano --plot TMP/no/f.svg", "--plot: there is no folder TMP/no"),
        ("inspect TMP/nowhere", "TMP/nowhere: not flash, pro, flash-0731, pro-0813 or nano, and no such folder"),
        ("bench --plot f.png", "--plot writes SVG: the name must end in .svg, got f.png"),
        ("bench --json TMP/no/f.jsonl", "--json: there is no folder TMP/no"),
        ("bench --json TMP/folder", "--json: TMP/folder is a folder"),
        ("bench --decode 0", "--decode must be at least 1, got 0"),
        ("bench --contexts 8 --contexts 0", "--contexts must be at least 1, got 0"),
        ("bench --context 0", "--context must be at least 1, got 0"),
        ("bench --contexts 2000000", "--contexts and --decode must fit into the model's 1,048,576 tokens"),
        ("bench TMP/folder TMP/folder", "one folder is measured at a time"),
        ("bench model TMP/folder", "TMP/folder"),
        ("bench kernels --no-fused", "flags of the engine are for whole models"),
        ("bench kernels --contexts 9 --plot a.svg", "--contexts, --plot: no use with dsv4 bench kernels"),
        ("bench model --decode 3 --peer --long", "--decode, --peer, --long: no use with dsv4 bench model"),
        ("bench --prefix-dir TMP", "--prefix-dir has no meaning for `dsv4 bench`"),
        ("generate TMP/folder --prompt x", "TMP/folder"),
        ("generate TMP/bytes --prompt x", "TMP/bytes: "),
        ("generate TMP/config --prompt x", "TMP/config: "),
        ("generate", "--prompt is empty"),
        ("generate --prompt x --stop ", "--stop is empty"),
        (f"convert {NANO} ", "argument 3 is empty"),
        ("serve --prefix-dir ", "--prefix-dir is empty"),
        ("serve --ledger=", "--ledger is empty"),
        ("train ", "argument 2 is empty"),
        ("chat --effort huge", "--effort must be one of none, high, max, got huge"),
        ("chat --no-thinking --effort max", "--effort must be none with --no-thinking, got max"),
        ("convert TMP/folder TMP/new", "TMP/folder"),
        ("verify TMP/file", "TARGET must be http://HOST:PORT, a model folder or its name, got 'TMP/file'"),
        ("eval TMP/file --suite gsm8k --data stand-in", "TARGET must be http://HOST:PORT, a model folder or its name"),
        ("verify http://127.0.0.1:9 --minutes nan", "--minutes must be above 0, got nan"),
        ("verify http://me:secret@127.0.0.1:9", "URL must be http://host:port, without a user or a password"),
        (f"convert {NANO} TMP/file", "TMP/file: is not an empty folder"),
        (
            f"convert {NANO} TMP/.gguf --requantize",
            "--requantize is for FP8 experts of a folder; a .gguf file has none",
        ),
        (f"convert {NANO} TMP/file/new", "TMP/file/new: Not a directory"),
        (f"convert {NANO} {NANO}", "dst must be another folder than src"),
        ("usage --since yesterday", "since must be a day as 2026-11-22 or a number of days as 7d, got 'yesterday'"),
        ("usage --ledger TMP/bytes", "TMP/bytes: not a ledger"),
        ("usage", "TMP/data/dsv4/usage.sqlite: no ledger there yet"),
        ("plan --free -1GiB", "--free must be a size like 8GiB or a share of free memory like 50%, got '-1GiB'"),
        (
            "plan --free 1MiB",
            " MiB, the rest cache and experts), and 1.0 MiB are free. ",
        ),
        (
            "plan --free 1MiB --memory 1GiB",
            "--memory must be at most 1.2 MiB, 1.25 times the 1.0 MiB of memory that is free, got",
        ),
        ("plan --context 9000000", "--context must be in [1, 1048576], got 9000000"),
        ("render --model TMP/nowhere", "--model TMP/nowhere: no such folder"),
        ("eval http://127.0.0.1:9 --suite data.json", "a file must be a Python file (NAME.py)"),
        ("pull nano", "nano comes with dsv4 and is not fetched: `dsv4 chat` uses it, and every verb takes its name"),
        ("train TMP/nowhere.toml", "TMP/nowhere.toml: "),
    ],
)
def test_wrong_values_and_places(dsv4: Run, command: str, message: str) -> None:
    code, out, err = dsv4(*command.split(" "))
    assert code == 1
    assert not out
    assert err.splitlines()[-1].startswith("dsv4: ")
    assert message in err
    assert len(err.strip().splitlines()) <= 3  # `dsv4 chat` shows the plan first


@pytest.mark.parametrize(
    "command", ["bench --empty-contexts", "generate --prompt x --empty-stop", "serve --empty-cors"]
)
def test_lists_have_no_flag_that_empties_them(dsv4: Run, command: str) -> None:
    """`--empty-contexts` ended in an error of Python's, and the others say what leaving the flag out says."""
    code, _, err = dsv4(*command.split())
    assert code == 2
    assert f"Unknown option: {command.split()[-1]}." in " ".join(err.split())


@pytest.mark.parametrize("command", ["generate --prompt x", "chat", "bench --contexts 8", "bench model"])
def test_steps_that_cannot_be_fused(dsv4: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    def unfit(*_: object, **__: object) -> None:
        raise UnfitError("not today")

    monkeypatch.setattr("dsv4.engine.runner.FusedStep", unfit)
    code, _, err = dsv4(*command.split(), "--fused")
    assert code == 1
    assert "steps cannot be fused: not today" in err


@pytest.mark.parametrize(
    "command",
    ["generate --max-tokens 1e9", "serve --port x", "chat --mode int8", "bench --contexts nan", "convert a b --dtype x",
     "generate --bogus", "sing", "inspect a b", "check", "usage --since -1d"],
)  # fmt: skip
def test_usage_is_code_2(dsv4: Run, command: str) -> None:
    code, out, err = dsv4(*command.split())
    assert code == 2
    assert "Traceback" not in out + err
    assert "Error" in err


def test_problems_of_a_folder_are_code_1(dsv4: Run) -> None:
    for place in ("TMP/nowhere", "TMP/file", "TMP/folder", "/dev/null"):
        code, out, _ = dsv4("check", place)
        assert code == 1
        assert "problem" in out


def test_a_port_in_use(dsv4: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        _, _, err = dsv4("serve", "--port", str(port))
    assert err == f"dsv4: port {port} on 127.0.0.1 is in use; choose another one with --port\n"


def test_sentences_of_the_system() -> None:
    assert sentence(OSError(28, "No space left on device", "runs/x")) == "runs/x: No space left on device"
    assert sentence(OSError(28, "No space left on device")) == "cannot read or write: No space left on device"
    assert sentence(OSError("port 80 is in use")) == "port 80 is in use"
    assert sentence(MemoryError()) == "there is not enough memory"


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """A line for bash in which $DSV4 is the command."""
    environment = {**os.environ, "DSV4": f"{sys.executable} -m dsv4.cli", "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, timeout=300)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("$DSV4 inspect flash --json > /dev/full", 1, "No space left on device\n"),
        ("$DSV4 inspect flash > /dev/full", 1, "No space left on device\n"),
        ("$DSV4 --version > /dev/full", 1, None),
        ("$DSV4 inspect flash --json >&-", 0, ""),
        ("$DSV4 inspect nowhere >&- 2>&-", 1, ""),
        ("$DSV4 generate <&-", 1, "dsv4: --prompt is empty\n"),
        ("printf 'ab\\377' | $DSV4 generate", 1, "dsv4: standard input: not utf-8 text (byte 2)\n"),
        ("PYTHONIOENCODING=ascii $DSV4 inspect flash > /dev/null", 0, ""),
        ("ulimit -f 1; $DSV4 inspect nano --plot $TARGET > /dev/null", 1, "TARGET: File too large\n"),
    ],
)
def test_streams(line: str, code: int, message: str | None, tmp_path: Path) -> None:
    target = str(tmp_path / "out.svg")
    done = shell(line, TARGET=target)
    told = done.stderr.decode()
    assert done.returncode == code, told
    assert "Traceback" not in told
    assert "Exception ignored" not in told
    if message is not None:
        assert told.replace(target, "TARGET").endswith(message)
        assert told.count("\n") == message.count("\n")


def test_a_reader_that_is_gone_ends_the_command_without_a_word() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "-m", "dsv4.cli", "inspect", "flash"]
        done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, timeout=300)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_full_disk_while_converting(tmp_path: Path) -> None:
    done = shell(f"ulimit -f 100; $DSV4 convert {NANO} {tmp_path}/new --dtype bf16")
    told = done.stderr.decode()
    assert done.returncode == 1
    assert told.startswith(f"dsv4: {tmp_path}/new")
    assert told.endswith(": File too large\n")


def test_ctrl_c_is_130() -> None:
    command = [sys.executable, "-m", "dsv4.cli", "generate"]  # waits for standard input
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        time.sleep(0.1)
        deadline = time.monotonic() + 60
        while not _reads(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""


def _reads(process: int) -> bool:
    """Whether a process has loaded the verb and waits for its input."""
    try:
        return "pipe_r" in Path(f"/proc/{process}/wchan").read_text()
    except OSError:
        return True


def test_warnings_of_our_own_are_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of others are shown as Python shows them."""
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        tell_notes()
        warnings.warn_explicit("the ids above are padding\x1b[2J", UserWarning, serve.__file__, 1)
        warnings.warn_explicit("this is slow", UserWarning, "/lib/torch/nn.py", 7)
    assert capsys.readouterr().err == "note: the ids above are padding␛[2J\n"
    assert [str(other.message) for other in others] == ["this is slow"]


def test_lines_for_a_file_are_whole_and_brackets_stay(capsys: pytest.CaptureFixture[str]) -> None:
    """Commands to copy stand in them, and names of the user's files."""
    line = f"use it: dsv4 chat {'x' * 200} --adapter runs/[red]/[/x]"
    console().print(line)
    assert capsys.readouterr().err == f"{line}\n"
