"""The libraries of an installed dsv4-kernels: used if they were compiled from these sources, else refused by name."""

from pathlib import Path

import pytest

from dsv4.kernels.native import BuildError, build
from dsv4.kernels.native.packaged import PACKAGE, SOURCES, library_name, packaged_folder


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an installed dsv4-kernels for `portable`, and a machine without a compiler."""
    folder = tmp_path / PACKAGE
    folder.mkdir()
    (folder / "__init__.py").write_text("raise AssertionError('it is found, not imported')")
    (folder / library_name("portable")).write_bytes(b"")
    (folder / SOURCES).write_text(build.source_digest() + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def test_a_library_of_these_sources_needs_no_compiler(package: Path) -> None:
    assert packaged_folder() == package
    assert build.library_path("portable") == package / library_name("portable")


def test_sanitizers_never_use_it(package: Path) -> None:
    with pytest.raises(BuildError, match=r"no C\+\+ compiler"):
        build.library_path("portable", ("-fsanitize=address",))


def test_other_sources_are_refused(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = build.structs.header() + "// changed"
    monkeypatch.setattr(build.structs, "header", lambda: changed)
    with pytest.raises(BuildError, match=r"no C\+\+ compiler.*dsv4-kernels was compiled from other sources"):
        build.library_path("portable")


def test_an_instruction_set_that_it_lacks_is_named(package: Path) -> None:
    with pytest.raises(BuildError, match="dsv4-kernels has no library for avx2"):
        build.library_path("avx2")


def test_other_sources_are_compiled_where_there_is_a_compiler(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (package / SOURCES).unlink()
    built: list[Path] = []
    monkeypatch.setattr(build, "compiler", lambda: "/bin/echo")
    monkeypatch.setattr(build, "_build", lambda *arguments: built.append(arguments[-1]))
    assert build.library_path("portable") == built[0]
    assert package not in built[0].parents
    assert "native kernels (portable): the installed dsv4-kernels was compiled from" in capsys.readouterr().err


def test_the_digest_names_what_the_kernels_are_made_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = build.source_digest()
    monkeypatch.setattr(build, "_FLAGS", (*build._FLAGS, "-g"))
    assert build.source_digest() != before
    monkeypatch.undo()
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "rows.cpp").write_text("int a;")
    monkeypatch.setattr(build, "KERNELS", tmp_path)
    one = build.source_digest()
    (tmp_path / "rows" / "rows.cpp").write_text("int b;")
    assert len({before, one, build.source_digest()}) == 3
