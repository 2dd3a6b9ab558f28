"""The team of a step: each piece of work is computed once, by helpers that come and go."""

import subprocess
from pathlib import Path

import pytest

from dsv4.kernels import native
from dsv4.kernels.native.build import KERNELS, compiler

pytestmark = pytest.mark.skipif(not native.available(), reason=f"native kernels: {native.why_not()}")
FLAGS = ("-std=c++20", "-O1", "-g1", "-pthread", "-Wall", "-Werror", "-Wno-unknown-pragmas", f"-I{KERNELS}")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_each_piece_is_computed_once_whoever_helps(tmp_path: Path) -> None:
    program = tmp_path / "team"
    sources = (str(Path(__file__).with_name("team.cpp")), str(KERNELS / "native" / "team.cpp"))
    subprocess.run([compiler(), *FLAGS, *sources, "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (0, "good\n"), done.stdout + done.stderr[-3000:]
