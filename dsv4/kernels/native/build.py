"""The build of the native kernels by the system's compiler, once for each set of sources, compiler and machine.

The C++ files of the kernel folders have a plain C interface and use neither Python nor torch.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

from dsv4.files import locked, rename, sync_path
from dsv4.kernels.native import structs
from dsv4.kernels.native.packaged import packaged_library
from dsv4.kernels.native.tiles import refusal_of_tiles

KERNELS = Path(__file__).parents[1]  # the C++ of an operation lies in its folder, shared C++ beside this file
HEADER = "structs.h"  # written at build time
# instruction sets, best first: features that the machine must have (as in /proc/cpuinfo), flags of the compiler
_AVX512 = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx2", "fma"})
_AVX512_FLAGS = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mavx2", "-mfma", "-mf16c")
_AVX512BF16 = _AVX512 | {"avx512_bf16", "avx512vbmi"}
_AVX512BF16_FLAGS = (*_AVX512_FLAGS, "-mavx512bf16", "-mavx512vbmi")
ISA: dict[str, tuple[frozenset[str], tuple[str, ...]]] = {
    "amx": (_AVX512BF16 | {"amx_tile", "amx_bf16"}, (*_AVX512BF16_FLAGS, "-mamx-tile", "-mamx-bf16")),
    "avx512bf16": (_AVX512BF16, _AVX512BF16_FLAGS),
    "avx512": (_AVX512, _AVX512_FLAGS),
    "avx2": (frozenset({"avx2", "fma", "f16c"}), ("-mavx2", "-mfma", "-mf16c")),
    "portable": (frozenset(), ()),
}
UNPROVEN = frozenset({"amx"})  # have not run on a machine that has them: taken only where DSV4_ISA names them
LEFT_BEHIND = 86_400.0  # seconds after which a folder in which nothing was written is of a build that was killed
SAY_EVERY = 10.0  # seconds between two lines about a build, where lines cannot be overwritten
_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fopenmp", "-fno-math-errno", "-ffp-contract=off", "-Wall", "-Wno-psabi")
# of a library for other machines: without -fopenmp it asks for no libgomp, which a system may lack; torch has loaded it
_PORTABLE_LINK = ("-Wl,--strip-all",)


class BuildError(RuntimeError):
    """The native kernels could not be built; the message has the reason."""


def machine_features() -> frozenset[str]:
    """CPU feature names of this machine; empty if the system does not provide them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    line = next((row for row in text.splitlines() if row.startswith("flags")), ":")
    return frozenset(line.partition(":")[2].split())


def lacking(isa: str) -> str:
    """Why this process cannot run `isa`; empty if it can. Tiles need the system's permission, which this asks for."""
    missing = ISA[isa][0] - machine_features()
    if missing:
        return f"this machine does not have {', '.join(sorted(missing))}, which {isa} needs"
    return refusal_of_tiles() if "amx_tile" in ISA[isa][0] else ""


def choose_isa(wanted: str | None = None) -> str:
    """The best proven instruction set of this machine, or `wanted`. Raises ValueError when the machine does not have
    it."""
    if wanted is None:
        return next(name for name in ISA if name not in UNPROVEN and not lacking(name))
    if wanted not in ISA:
        raise ValueError(f"instruction set must be one of {', '.join(ISA)}, got {wanted!r}")
    if reason := lacking(wanted):
        raise ValueError(reason)
    return wanted


def compiler() -> str:
    """$CXX, c++, g++ or clang++. Raises BuildError when there is none."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    raise BuildError("no C++ compiler (c++, g++ or clang++) was found")


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dsv4" / "native"


def source_digest() -> str:
    """A digest of what the kernels are made from: sources, structs, and flags of all instruction sets. It depends on
    neither compiler nor machine, so it tells whether a library from elsewhere belongs to these sources."""
    flags = {name: options for name, (_, options) in ISA.items()}
    digest = hashlib.sha256(f"{_FLAGS}{flags}{structs.header()}".encode())
    for file in sorted([*KERNELS.glob("*/*.cpp"), *KERNELS.glob("*/*.h")]):
        digest.update(f"{file.relative_to(KERNELS).as_posix()}".encode() + file.read_bytes())
    return digest.hexdigest()


def library_path(isa: str, extra: tuple[str, ...] = ()) -> Path:
    """The shared library for `isa`: that of an installed dsv4-kernels made from these sources, else one that is
    compiled here if needed. `extra`: more compiler flags (sanitizers), always compiled here."""
    sources = source_digest()
    packaged, unfit = (None, "") if extra else packaged_library(isa, sources)
    if packaged is not None:
        return packaged
    try:
        cxx = compiler()
    except BuildError as error:
        raise BuildError(f"{error}{f'; {unfit}' if unfit else ''}") from None
    version = subprocess.run([cxx, "--version"], capture_output=True, text=True).stdout
    flags = (*_FLAGS, *ISA[isa][1], *extra)
    digest = hashlib.sha256(f"{version}{flags}{platform.machine()}{sources}".encode())
    target = cache_folder() / f"dsv4-{isa}-{digest.hexdigest()[:16]}.so"
    if not target.exists():
        if unfit:
            _say(isa, unfit)
        _build_once(isa, cxx, flags, target)
    return target


def _build_once(isa: str, cxx: str, flags: tuple[str, ...], target: Path) -> None:
    """Compile the library, unless another process does so: then wait for it. Raises BuildError."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_suffix(".lock"), lambda: _say(isa, "another process compiles the kernels, waiting")):
            if not target.exists():
                _remove_left_behind(target.parent)
                _build(cxx, flags, flags, target)
    except OSError as error:
        raise BuildError(f"cannot write {target}: {error.strerror}") from error


def _remove_left_behind(folder: Path) -> None:
    """Remove the folders of builds that were killed. One that runs writes into its own every few seconds."""
    for left in folder.glob(f"{tempfile.gettempprefix()}*"):
        with suppress(OSError):  # another process may remove it at the same time
            if left.is_dir() and not left.is_symlink() and time.time() - left.stat().st_mtime > LEFT_BEHIND:
                shutil.rmtree(left, ignore_errors=True)


def _say(isa: str, text: str) -> None:
    print(f"native kernels ({isa}): {text}", file=sys.stderr, flush=True)


def build_portable(isa: str, target: Path, cxx: str) -> None:
    """Compile the library for `isa` so that it runs on other machines of the compiler's kind, into `target`. Raises
    BuildError."""
    _build(cxx, (*_FLAGS, *ISA[isa][1]), _PORTABLE_LINK, target)


def write_header(folder: Path) -> Path:
    """Write the declarations of the structs into a folder; returns the folder, to be searched for includes."""
    (folder / HEADER).write_text(structs.header(), encoding="utf-8")
    return folder


def _build(cxx: str, flags: tuple[str, ...], link: tuple[str, ...], target: Path) -> None:
    """Compile each source with `flags`, link with `link`, and rename the result to its place, because without locks two
    processes may build at the same time. Prints its progress on stderr, because a build may take a minute."""
    sources = sorted(KERNELS.glob("*/*.cpp"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=target.parent) as folder,
            _Compilation(len(sources), target.stem) as progress,
        ):
            include = [f"-I{KERNELS}", f"-I{write_header(Path(folder))}"]
            objects = [str(Path(folder) / f"{file.stem}.o") for file in sources]
            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                jobs = {
                    pool.submit(_run, [cxx, *flags, *include, "-c", str(source), "-o", made]): source.name
                    for source, made in zip(sources, objects, strict=True)
                }
                for job in as_completed(jobs):
                    job.result()
                    progress.made(jobs[job])
            made = Path(folder) / target.name
            _run([cxx, *link, "-shared", *objects, "-o", str(made)])
            sync_path(made)
            rename(made, target)
    except OSError as error:
        raise BuildError(f"cannot write {target}: {error.strerror}") from error


class _Compilation:
    """The progress of a build: one changing line on a terminal, a line every few seconds elsewhere."""

    def __init__(self, sources: int, target: str) -> None:
        self._sources, self._target, self._done = sources, target, 0
        self._start = self._said = time.monotonic()
        self._live = sys.stderr.isatty()

    def __enter__(self) -> "_Compilation":
        self._say(f"compiling {self._sources} files, once per machine and version")
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        took = time.monotonic() - self._start
        self._say(f"compiled in {took:.0f} s" if kind is None else f"failed after {took:.0f} s", last=True)

    def made(self, name: str) -> None:
        self._done += 1
        if self._live or time.monotonic() - self._said > SAY_EVERY:
            self._say(f"{self._done} of {self._sources} compiled ({name})")

    def _say(self, text: str, last: bool = False) -> None:
        self._said = time.monotonic()
        line = f"native kernels ({self._target.split('-')[1]}): {text}"
        if self._live:
            print(f"\r\033[K{line}", end="\n" if last else "", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
