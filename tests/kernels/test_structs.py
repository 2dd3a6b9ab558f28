"""Structs that native code is given: the header written from Python's declarations lies in memory as they do."""

import ctypes
import subprocess
from pathlib import Path

import pytest

from dsv4.kernels import native
from dsv4.kernels.native import build, structs

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not())


def compile_text(text: str) -> str:
    """The compiler's errors; empty when there are none."""
    command = [build.compiler(), "-std=c++20", "-fsyntax-only", "-Wall", "-Werror", "-Wno-invalid-offsetof"]
    done = subprocess.run([*command, "-x", "c++", "-"], input=text, capture_output=True, text=True)
    return done.stderr if done.returncode else ""


def checks(mirror: type[ctypes.Structure]) -> list[str]:
    """C++ that compiles when a struct has the sizes and offsets that Python uses."""
    name = f"dsv4::{mirror.__name__}"
    lines = [f"static_assert(sizeof({name}) == {ctypes.sizeof(mirror)});"]
    for field, *_ in mirror._fields_:
        place = getattr(mirror, field)
        lines.append(f"static_assert(offsetof({name}, {field}) == {place.offset});")
        lines.append(f"static_assert(sizeof({name}::{field}) == {place.size});")
    return lines


class Rows(ctypes.Structure):
    """Declared otherwise: the last field comes first."""

    _fields_ = (structs.Rows._fields_[-1], *structs.Rows._fields_[:-1])


def test_the_header_lies_in_memory_as_the_declarations() -> None:
    assert structs.AttentionCall in structs.STRUCTS
    lines = [line for struct in structs.STRUCTS for line in checks(struct)]
    assert compile_text("\n".join([structs.header().replace("#pragma once", ""), "#include <cstddef>", *lines])) == ""


def test_the_check_sees_a_field_that_moved() -> None:
    text = structs.header([Rows]).replace("#pragma once", "#include <cstddef>")
    assert compile_text("\n".join([text, *checks(Rows)])) == ""
    assert "static assertion failed" in compile_text("\n".join([text, *checks(structs.Rows)]))


def test_a_changed_declaration_changes_header_and_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(build, "_build", lambda *_: None)
    before = build.library_path("portable"), structs.header()
    changed = structs.header([Rows, *structs.STRUCTS[1:]])
    monkeypatch.setattr(structs, "header", lambda: changed)
    assert changed != before[1]
    assert build.library_path("portable") != before[0]


def test_structs_are_declared_in_one_place_only() -> None:
    package = build.KERNELS.parent
    declaring = [file for file in package.rglob("*.py") if "(ctypes.Structure)" in file.read_text(encoding="utf-8")]
    assert declaring == [Path(structs.__file__)]
    for file in (*build.KERNELS.glob("*/*.h"), *build.KERNELS.glob("*/*.cpp")):
        text = file.read_text(encoding="utf-8")
        assert not [s.__name__ for s in structs.STRUCTS if f"struct {s.__name__} {{" in text], file
