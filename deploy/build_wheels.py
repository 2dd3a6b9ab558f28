"""Build the wheels of a release: dsv4 (Python, C++ sources, bundled model) and dsv4-kernels (compiled, per platform).

    python3 run.py wheels                                   both, into dist/
    python3 run.py wheels --cxx aarch64-linux-gnu-g++       the kernels for another machine, by a cross compiler

The platform tag of dsv4-kernels says which systems have the versions of glibc and libstdc++ that the libraries ask for.
A compiler of an older system makes wheels that run on older systems.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import dsv4
from dsv4.kernels.native.build import ISA, BuildError, build_portable, compiler, source_digest
from dsv4.kernels.native.packaged import PACKAGE, SOURCES, library_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = ROOT / "deploy" / "kernels"
INSTRUCTION_SETS = {"x86_64": tuple(ISA), "aarch64": ("portable",)}
# every manylinux system has these; anything else must come with torch, as OpenMP does
SYSTEM_LIBRARIES = re.compile(r"(libc|libm|libpthread|libdl|librt|libstdc\+\+|libgcc_s|ld-linux-[\w-]+)\.so\.\d+")
# the newest 3.4.N of libstdc++ that systems with a glibc have: the rows of manylinux (PEP 600) where N changes
RUNTIME_OF_GLIBC = {19: (2, 17), 22: (2, 24), 24: (2, 27), 28: (2, 31), 29: (2, 34), 30: (2, 35), 33: (2, 39)}


def machine_of(cxx: str) -> str:
    """The machine that a compiler compiles for. Raises ValueError for one without kernels."""
    said = subprocess.run([cxx, "-dumpmachine"], capture_output=True, text=True, check=True).stdout.strip()
    machine = said.split("-")[0]
    if machine not in INSTRUCTION_SETS or "linux" not in said:
        known = ", ".join(INSTRUCTION_SETS)
        raise ValueError(f"--cxx must compile for Linux on one of {known}, {cxx} does for {said}")
    return machine


def glibc_of(library: Path) -> tuple[int, int]:
    """The version of glibc from which on systems can load a library. Raises ValueError if it needs what not every such
    system has."""
    read = subprocess.run(["readelf", "-dVW", str(library)], capture_output=True, text=True, check=True).stdout
    foreign = [name for name in re.findall(r"\(NEEDED\).*\[(.+)\]", read) if not SYSTEM_LIBRARIES.fullmatch(name)]
    if foreign:
        raise ValueError(f"{library.name} needs {', '.join(foreign)}, which not every system has")
    runtime = max([0, *map(int, re.findall(r"\bGLIBCXX_3\.4\.(\d+)", read))])
    if runtime > max(RUNTIME_OF_GLIBC):
        raise ValueError(f"{library.name} needs libstdc++ 3.4.{runtime}, newer than any manylinux system: use --cxx")
    versions = re.findall(r"\bGLIBC_(\d+)\.(\d+)", read)
    needed = min(glibc for newest, glibc in RUNTIME_OF_GLIBC.items() if newest >= runtime)
    return max([needed, *((int(major), int(minor)) for major, minor in versions)])


def build_kernels(out: Path, cxx: str) -> None:
    """Compile all instruction sets of the compiler's machine and wrap them as a wheel in `out`."""
    machine = machine_of(cxx)
    with tempfile.TemporaryDirectory() as temporary:
        project = Path(temporary) / "kernels"
        shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "LICENSE", project)
        package, sources = project / PACKAGE, source_digest()
        libraries = [package / library_name(isa) for isa in INSTRUCTION_SETS[machine]]
        for isa, library in zip(INSTRUCTION_SETS[machine], libraries, strict=True):
            build_portable(isa, library, cxx)
        if source_digest() != sources:
            raise ValueError("the sources of the kernels were changed during the build: build again")
        (package / SOURCES).write_text(sources + "\n", encoding="utf-8")
        major, minor = max(map(glibc_of, libraries))
        (project / "platform.txt").write_text(f"manylinux_{major}_{minor}_{machine}", encoding="utf-8")
        build_wheel(project, out)


def build_wheel(project: Path, out: Path) -> None:
    """Build the wheel of a Python project by pip. Raises CalledProcessError; pip has said why."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(project)]
    subprocess.run(command, check=True)


def main(arguments: list[str]) -> int:
    """Exit status: 0 if all wheels are built, 1 with a message."""
    parser = argparse.ArgumentParser(prog="run.py wheels", description="Build the wheels of dsv4 and dsv4-kernels.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the wheels (default: dist)")
    parser.add_argument("--cxx", help="compiler; one for another machine builds dsv4-kernels for that machine")
    flags = parser.parse_args(arguments)
    try:
        build_wheel(ROOT, flags.out)
        build_kernels(flags.out, flags.cxx or compiler())
    except (BuildError, ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"run.py wheels: {error}", file=sys.stderr)
        return 1
    for wheel in sorted(flags.out.glob(f"dsv4*-{dsv4.__version__}-*.whl")):
        print(f"{wheel}  {wheel.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
