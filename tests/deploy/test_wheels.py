"""The wheels answer where there is neither a checkout nor a compiler: built, installed in a new environment, asked."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from deploy import build_wheels
from dsv4.kernels.native.build import ISA, choose_isa
from tests.conftest import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None or shutil.which("readelf") is None, reason="no g++ or readelf"),
]
LIBRARIES = "from dsv4.kernels import native; import dsv4; print(native.describe(), dsv4.__file__, sep='|')"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Both wheels: those in the folder DSV4_WHEELS, else built by pip, which needs an index for the build backend."""
    if folder := os.environ.get("DSV4_WHEELS"):
        return sorted(Path(folder).glob("*.whl"))
    out = tmp_path_factory.mktemp("wheels")
    offered = subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(out / "x"), "hatchling"])
    if offered.returncode:
        pytest.skip("no package index is reachable")
    assert build_wheels.main(["--out", str(out)]) == 0
    return sorted(out.glob("*.whl"))


class Installed:
    """An environment that holds the wheels, and sees the other libraries of this one; no compiler is on its PATH."""

    def __init__(self, folder: Path, wheels: list[Path]) -> None:
        venv.create(folder, symlinks=True)
        self.bin, self.home = folder / "bin", folder / "home"
        self.home.mkdir()
        command = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install", "--no-deps"]
        subprocess.run([*command, "--no-index", *map(str, wheels)], check=True)
        # a path named in a .pth file is searched, but .pth files in it are not read: no editable dsv4 comes along
        own = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
        (own / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            cwd=self.home,
            env={"HOME": str(self.home), "PATH": str(self.bin), "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
        )


@pytest.fixture(scope="module")
def installed(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), wheels)


def test_the_bundled_model_answers_as_in_the_checkout(installed: Installed) -> None:
    flags = ("--prompt", "What is 17 + 25?", "--chat", "--temperature", "0", "--max-tokens", "64")
    done = installed.run("dsv4", "generate", *flags)
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "dsv4.cli", "generate", *flags]
    here = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert here.returncode == 0, here.stderr
    assert done.stdout == here.stdout
    assert done.stdout.strip()


@pytest.mark.parametrize("isa", ISA)
def test_kernels_come_from_the_wheel(installed: Installed, isa: str) -> None:
    try:
        choose_isa(isa)
    except ValueError as error:
        pytest.skip(str(error))
    done = installed.run("python", "-c", LIBRARIES, DSV4_ISA=isa)
    assert done.returncode == 0, done.stderr
    kernels, place = done.stdout.strip().split("|")
    assert kernels == f"native, {isa}, from dsv4-kernels"
    assert place.startswith(str(installed.bin.parent))
    assert not (installed.home / ".cache" / "dsv4").exists()


def test_without_the_kernels_torch_answers_and_says_why(wheels: list[Path], tmp_path: Path) -> None:
    bare = Installed(tmp_path / "bare", [wheel for wheel in wheels if wheel.name.startswith("dsv4-")])
    done = bare.run("python", "-c", LIBRARIES)
    assert done.stdout.startswith("plain torch (no C++ compiler (c++, g++ or clang++) was found)"), done.stderr
