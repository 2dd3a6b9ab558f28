"""Every instruction set this machine has, not only the best: one process each, because a process loads one library."""

import os
import subprocess
import sys

import pytest

from dsv4.kernels import native
from tests.conftest import ROOT
from tests.kernels.instruction_sets import EVERY_ISA

# each operation beside its reference, and the fused step: what a kernel written for one width of lanes can get wrong
SMALL_SET = (
    "kernels/test_native_linear.py",
    "kernels/test_native_layers.py",
    "kernels/test_native_moe.py",
    "kernels/test_native_backward.py",
    "kernels/test_moe.py",
    "kernels/test_sparse_attention_native.py",
    "kernels/test_indexer_native.py",
    "kernels/test_compress.py",
    "kernels/test_rows.py",
    "kernels/test_rope.py",
    "engine/test_step.py",
    "engine/test_fused.py::test_streams_of_all_lengths[release-release]",
)


@pytest.mark.skipif(not native.available(), reason=f"native kernels: {native.why_not()}")
@pytest.mark.parametrize("isa", EVERY_ISA)
def test_kernels_on(isa: str) -> None:
    if isa == native.isa():
        pytest.skip(f"{isa}: every other test runs on it")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *(f"tests/{name}" for name in SMALL_SET)],
        cwd=ROOT,
        env={**os.environ, "DSV4_ISA": isa, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
