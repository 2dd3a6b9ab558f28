"""Structs that native code is given: Python's declaration lies in memory as the C++ one."""

import ctypes
import re
import subprocess
from pathlib import Path

import pytest

from dsv4.engine.step import structs
from dsv4.kernels import native
from dsv4.kernels.compress import native as compress
from dsv4.kernels.hyper_connection import native as hyper_connection
from dsv4.kernels.indexer import native as indexer
from dsv4.kernels.native.build import ISA, KERNELS, compiler
from dsv4.kernels.rows import native as rows
from dsv4.kernels.sparse_attention import native as sparse_attention

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not())
STRUCTS: dict[str, tuple[str, type[ctypes.Structure]]] = {
    "Rows": ("rows/rows.h", rows.Rows),
    "AttentionCall": ("sparse_attention/attention.h", sparse_attention._Call),
    "BackwardCall": ("sparse_attention/attention_backward.cpp", sparse_attention._Backward),
    "IndexCall": ("indexer/indexer.h", indexer._Call),
    "PoolCall": ("compress/compress.h", compress._Call),
    "PoolBackward": ("compress/compress_backward.cpp", compress._Backward),
    "EnterBackward": ("hyper_connection/hyper_backward.cpp", hyper_connection._EnterBackward),
    "StepLinear": ("step/step.h", structs.Linear),
    "StepConnection": ("step/step.h", structs.Mix),
    "StepCompressor": ("step/step.h", structs.Compressor),
    "StepExperts": ("step/step.h", structs.Experts),
    "StepLayer": ("step/step.h", structs.Layer),
    "StepModel": ("step/step.h", structs.Model),
    "StepStoreLayer": ("step/step.h", structs.StoreLayer),
    "StepStore": ("step/step.h", structs.Store),
    "StepBatch": ("step/step.h", structs.Batch),
}


def members_of(name: str, file: str) -> list[str]:
    """Names of a C++ struct's members in order."""
    text = re.sub(r"//.*", "", (KERNELS / file).read_text(encoding="utf-8"))
    found = re.search(rf"\bstruct {name} {{(.*?)\n}};", text, re.DOTALL)
    assert found, f"{file} has no struct {name}"
    lines = [line for line in found[1].split(";") if "(" not in line and "}" not in line and line.strip()]
    return [re.findall(r"\w+", part)[-1] for line in lines for part in line.split(",")]


def checks(name: str, file: str, mirror: type[ctypes.Structure]) -> str:
    """A C++ text that compiles when both agree."""
    members = members_of(name, file)
    fields = [field[0] for field in mirror._fields_]
    assert len(members) == len(fields), (members, fields)
    lines = [f'#include "{file}"', "#include <cstddef>", "namespace dsv4 {}", "using namespace dsv4;"]
    lines.append(f"static_assert(sizeof({name}) == {ctypes.sizeof(mirror)});")
    for member, field in zip(members, fields, strict=True):
        place = getattr(mirror, field)
        lines.append(f"static_assert(offsetof({name}, {member}) == {place.offset});")
        lines.append(f"static_assert(sizeof({name}::{member}) == {place.size});")
    return "\n".join(lines) + "\n"


def compile_text(text: str) -> str:
    """What the compiler says of a text; empty when it takes it."""
    command = [compiler(), "-std=c++20", "-fopenmp", "-fsyntax-only", "-w", *ISA[native.isa()][1], "-I", str(KERNELS)]
    done = subprocess.run([*command, "-x", "c++", "-"], input=text, capture_output=True, text=True)
    return done.stderr if done.returncode else ""


@pytest.mark.parametrize("name", STRUCTS)
def test_a_struct_lies_in_memory_as_its_mirror(name: str) -> None:
    file, mirror = STRUCTS[name]
    assert compile_text(checks(name, file, mirror)) == ""


def test_the_check_sees_a_member_that_moved() -> None:
    class Moved(ctypes.Structure):
        _fields_ = (*rows.Rows._fields_[1:], rows.Rows._fields_[0])

    assert "static assertion failed" in compile_text(checks("Rows", "rows/rows.h", Moved))


def test_every_mirror_is_compared() -> None:
    modules = (rows, compress, hyper_connection, indexer, sparse_attention, structs)
    mirrors = {value for module in modules for value in vars(module).values() if _is_struct(value)}
    assert mirrors == {mirror for _, mirror in STRUCTS.values()}
    sources = KERNELS.parent.rglob("*.py")
    declaring = {file for file in sources if "(ctypes.Structure)" in file.read_text(encoding="utf-8")}
    assert declaring == {Path(str(module.__file__)) for module in modules}


def _is_struct(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, ctypes.Structure)
