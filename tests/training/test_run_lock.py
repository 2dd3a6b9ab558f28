"""A run's folder has one owner, and a dead one is none."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dsv4.training.run_lock import RunLock
from tests.conftest import ROOT

OWNER = """
import sys, time
from pathlib import Path
from dsv4.training.run_lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def owner_of(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the lock when this returns."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", OWNER, str(folder)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_who_the_first_is(tmp_path: Path) -> None:
    process = owner_of(tmp_path)
    try:
        with pytest.raises(ValueError, match=f"is in use by process {process.pid} on "), RunLock(tmp_path):
            pass
    finally:
        process.kill()
        process.communicate()


def test_kill_9_frees_it(tmp_path: Path) -> None:
    process = owner_of(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    with RunLock(tmp_path), pytest.raises(ValueError, match=f"process {os.getpid()} on "), RunLock(tmp_path):
        pass
    with RunLock(tmp_path):
        pass


def test_there_is_no_run_on_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("dsv4.files.fcntl.flock", none)
    with pytest.raises(OSError, match="No locks available"), RunLock(tmp_path):
        pass
