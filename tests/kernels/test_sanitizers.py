"""The kernel tests again with the native library built for AddressSanitizer and UBSan, and all of them on every
instruction set of this machine and with the tiles of AMX in plain C++."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsv4.kernels import native
from dsv4.kernels.native.build import compiler, lacking
from tests.conftest import ROOT
from tests.kernels.instruction_sets import EVERY_ISA

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not native.available(), reason=f"native kernels: {native.why_not()}"),
]
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g1", "-O1")
# replaces the library before any test asks for it
PLUGIN = """
from dsv4.kernels import native
from dsv4.kernels.native import build
native.library_path = lambda isa: build.library_path(isa, {flags!r})
assert native.available(), native.why_not()
"""


def run_kernel_tests(folder: Path, flags: tuple[str, ...], **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "other_library.py").write_text(PLUGIN.format(flags=flags))
    paths = f"{folder}{os.pathsep}{ROOT}"
    own_processes = "--ignore=tests/kernels/test_every_isa.py"  # which would not have these flags
    options = ["-x", "-p", "other_library", "-p", "no:cacheprovider", own_processes]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, "tests/kernels"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "2", **environment},
        capture_output=True,
        text=True,
    )


def test_no_kernel_reads_or_writes_outside_its_memory(tmp_path: Path) -> None:
    runtimes = [
        subprocess.run([compiler(), f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(Path(runtime).is_absolute() for runtime in runtimes):
        pytest.skip("the compiler has no sanitizer runtimes")
    done = run_kernel_tests(
        tmp_path,
        SANITIZE,
        LD_PRELOAD=" ".join(runtimes),
        ASAN_OPTIONS="detect_leaks=0",  # the interpreter keeps what it allocated
        UBSAN_OPTIONS="print_stacktrace=1",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    assert " passed" in done.stdout


@pytest.mark.skipif(bool(lacking("avx512bf16")), reason=lacking("avx512bf16"))
def test_all_kernels_with_tiles_in_plain_cpp(tmp_path: Path) -> None:
    done = run_kernel_tests(tmp_path, ("-DDSV4_PLAIN_TILES",), DSV4_ISA="avx512bf16")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("isa", EVERY_ISA)
def test_all_kernels_on(tmp_path: Path, isa: str) -> None:
    done = run_kernel_tests(tmp_path, (), DSV4_ISA=isa)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
