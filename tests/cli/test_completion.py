"""`dsv4 completion`: shells complete verbs, flags and values with the scripts it prints."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dsv4.cli.__main__ import VERBS
from tests.conftest import ROOT

# asks bash what it would offer for the last of these words
ASK_BASH = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _dsv4
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completion(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run the command with a home folder of its own, started by no shell that could be recognised."""
    return subprocess.run(
        [sys.executable, "-m", "dsv4.cli", "completion", *arguments],
        cwd=ROOT,
        env={"HOME": str(home), "PATH": "", "SHELL": "/bin/sh", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A script for each shell."""
    folder = tmp_path_factory.mktemp("completion")
    files = {}
    for shell in ("bash", "zsh", "fish"):
        done = completion(shell, home=folder)
        assert done.returncode == 0, done.stderr
        files[shell] = folder / shell
        files[shell].write_text(done.stdout)
    return files


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["ch"], {"chat", "check"}),
        (["serve", "--expert"], {"--expert-memory"}),
        (["serve", "--windows", ""], {"periodic", "full", "none"}),
        (["serve", "--port", "8001", "--ins"], {"--insecure"}),
        (["inspect", "--no-such"], {""}),
        (["check", "mod"], {"models"}),  # a folder of the checkout
    ],
)
def test_bash_offers(scripts: dict[str, Path], words: list[str], offered: set[str]) -> None:
    command = ["bash", "-c", ASK_BASH, "bash", str(scripts["bash"]), "dsv4", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.removesuffix("\n").split("\n")) == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_can_read_their_script(scripts: dict[str, Path], shell: str) -> None:
    text = scripts[shell].read_text()
    assert all(verb in text for verb in VERBS)
    assert "expert-memory" in text
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here to read it")
    done = subprocess.run([shell, "-n", str(scripts[shell])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_installing_writes_into_the_home_folder(tmp_path: Path) -> None:
    (tmp_path / ".bashrc").write_text("alias ll='ls -l'\n")
    contents = []
    for _ in range(2):
        done = completion("bash", "--install", home=tmp_path)
        assert done.returncode == 0, done.stderr
        contents.append((tmp_path / ".bashrc").read_text())
    script = tmp_path / ".local/share/bash-completion/completions/dsv4"
    assert str(script) in done.stdout
    assert "complete -F _dsv4 dsv4" in script.read_text()
    assert contents[0].startswith("alias ll='ls -l'\n")
    assert str(script) in contents[0]
    assert contents[1] == contents[0]


def test_an_unknown_shell_is_a_sentence(tmp_path: Path) -> None:
    done = completion(home=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "dsv4: shell must be one of bash, zsh, fish; this one was not recognised, so name it: dsv4 completion bash\n"
    )
