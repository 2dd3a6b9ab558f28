"""The portable path on arm64: cross-compiled, and run by an emulator."""

import shutil
import subprocess
from pathlib import Path

import pytest

from dsv4.kernels.native.build import KERNELS, write_header
from tests.kernels.product_library import SOURCES

COMPILER, EMULATOR = (shutil.which(name) for name in ("aarch64-linux-gnu-g++", "qemu-aarch64-static"))
FLAGS = ("-std=c++20", "-O2", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi", f"-I{KERNELS}")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="needs aarch64-linux-gnu-g++ (Debian: g++-aarch64-linux-gnu)"),
]


def compiled(folder: Path, *arguments: str) -> None:
    subprocess.run([str(COMPILER), *FLAGS, f"-I{write_header(folder)}", *arguments], check=True)


def test_every_kernel_compiles(tmp_path: Path) -> None:
    for source in sorted(KERNELS.glob("*/*.cpp")):
        compiled(tmp_path, "-fopenmp", "-Wall", "-Werror", "-fsyntax-only", str(source))


@pytest.mark.skipif(EMULATOR is None, reason="needs qemu-aarch64-static (Debian: qemu-user-static)")
def test_products_are_right_and_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    names = (*(f"matmul/{name}" for name in SOURCES), "quant/quant", "native/team")
    parts = [str(KERNELS / f"{name}.cpp") for name in names]
    program = tmp_path / "products"
    compiled(tmp_path, "-static", "-o", str(program), str(Path(__file__).with_name("products.cpp")), *parts)
    done = subprocess.run([str(EMULATOR), str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("96 cases, 0 wrong\n")
