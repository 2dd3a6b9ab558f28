"""Imports point one way: the table of docs/reading.md, compared with the syntax trees."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

ALLOWED: dict[str, set[str]] = {
    "config": set(),
    "encoding": set(),
    "files": set(),
    "generation": set(),
    "kernels": {"files"},
    "observe": set(),
    "parameters": {"config"},
    "sandbox": set(),
    "answer": {"generation", "encoding"},
    "backends": {"generation", "observe"},
    "server": {"answer", "generation", "encoding", "files", "observe"},
    "api": {
        "answer", "cache", "checkpoint", "config", "encoding", "engine", "files", "generation", "hub", "kernels",
        "model", "planning", "server",
    },
    "hub": {"checkpoint", "config", "files"},
    "planning": {"cache", "checkpoint", "config", "files", "kernels", "model", "parameters"},
    "bench": {"api", "cache", "config", "generation", "kernels", "model", "parameters", "verify", "workload"},
    "model": {"config", "parameters", "kernels"},
    "cache": {"config", "kernels", "model", "files", "observe"},
    "checkpoint": {"config", "parameters", "kernels", "model", "files", "observe"},
    "distributed": {"config", "parameters", "model", "kernels", "checkpoint", "training", "files", "observe"},
    "testing": {"config", "generation", "model", "kernels"},
    "verify": {"encoding", "server"},
    "evals": {"encoding", "files", "observe", "sandbox", "verify"},
    "workload": set(),
    "simulate": {"cache", "config", "engine", "files", "generation", "model", "planning", "workload"},
    "engine": {"config", "generation", "model", "cache", "kernels", "observe"},
    "training": {"config", "parameters", "model", "kernels", "checkpoint", "files", "observe"},
    "posttraining": {
        "answer", "backends", "config", "parameters", "generation", "encoding", "model", "kernels", "distributed",
        "checkpoint", "training", "files", "observe", "sandbox",
    },
}  # fmt: skip
# may import everything; `recipes` too, which lies beside the package
FREE = {"cli", "__init__", "__main__"}
SOURCES = sorted((ROOT / "dsv4").rglob("*.py"))


def part_of(file: Path) -> str:
    """The top-level part a file belongs to."""
    return file.relative_to(ROOT / "dsv4").parts[0].removesuffix(".py")


def imports_of(file: Path) -> set[str]:
    """Modules of ours that run when this file is imported or used, as dotted names; typing-only ones left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{file}: no relative imports"
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dsv4":
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "dsv4"}
    return found


def parts() -> set[str]:
    """The top-level parts that exist; a folder without Python files (`configs`) is none."""
    return {part_of(file) for file in SOURCES}


def test_the_table_names_every_part_and_no_other() -> None:
    assert parts() == ALLOWED.keys() | FREE
    assert not {name for allowed in ALLOWED.values() for name in allowed} - ALLOWED.keys()


def test_the_table_of_the_tour_is_this_one() -> None:
    text = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")
    levels: dict[str, int] = {}
    listed: dict[str, set[str]] = {}
    for level, names, imports in re.findall(r"^\| (\d) \| (.*?) \| (.*?) \|$", text, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", names):
            levels[name] = int(level)
            listed[name] = {"everything"} if imports == "everything" else set(re.findall(r"`(\w+)`", imports))
    assert listed == {**ALLOWED, "cli": {"everything"}, "recipes": {"everything"}}
    assert not [(a, b) for a, allowed in ALLOWED.items() for b in allowed if levels[b] >= levels[a]]
    assert max(levels.values()) == levels["cli"]


def test_the_drawing_of_the_tour_names_every_part() -> None:
    drawing = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8").split("```")[1]
    assert set(re.findall(r"\w+", drawing)) >= parts() - {"__init__", "__main__"}


# the rooms of the server, each with the rooms it may import; what all requests share lies in `backend`, and the files
# beside the rooms (app, routes, ...) may import every room
ROOMS: dict[str, set[str]] = {
    "wire": set(),
    "static": set(),
    "mcp": {"wire"},
    "accounts": {"wire"},
    "guard": {"wire"},
    "storage": {"wire"},
    "backend": {"wire", "accounts", "guard", "storage", "mcp"},
    "dialects": {"wire", "accounts", "guard", "storage", "backend"},
    "admin": {"wire", "accounts", "guard", "storage", "backend", "dialects"},
}


def test_rooms_of_the_server_point_one_way() -> None:
    rooms = list(ROOMS)
    assert all(rooms.index(lower) < rooms.index(room) for room in rooms for lower in ROOMS[room])
    assert set(rooms) == {file.parent.name for file in (ROOT / "dsv4" / "server").glob("*/__init__.py")}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_of_the_server_follow_their_table(room: str) -> None:
    files = sorted((ROOT / "dsv4" / "server" / room).rglob("*.py"))
    names = {name.split(".")[2] for file in files for name in imports_of(file) if name.startswith("dsv4.server.")}
    assert files
    assert names - {room} <= ROOMS[room]


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_follow_the_table(file: Path) -> None:
    part = part_of(file)
    if part in FREE:
        return
    assert part in ALLOWED, f"{part} is in no row of the table"
    used = {name.split(".")[1] for name in imports_of(file) if "." in name}
    assert used - {part} <= ALLOWED[part]


def test_no_import_cycles() -> None:
    modules = {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in SOURCES}
    graph = {}
    for name, file in modules.items():
        wanted = {m for m in imports_of(file) if m in modules and m != name}
        # importing a submodule also runs its packages, which is no cycle in itself
        graph[name] = {m for m in wanted if not name.startswith(m + ".") and not m.startswith(name + ".")}
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> None:
        if name in path:
            raise AssertionError("import cycle: " + " -> ".join([*path[path.index(name) :], name]))
        if name not in done:
            path.append(name)
            for other in sorted(graph[name]):
                visit(other)
            done.add(path.pop())

    for name in graph:
        visit(name)


@pytest.mark.parametrize(
    "module",
    [
        "dsv4",
        "dsv4.encoding",
        "dsv4.generation",
        "dsv4.config",
        "dsv4.hub",
        "dsv4.api.folders",
        "dsv4.backends.survey",
        "dsv4.server.app",
        "dsv4.training.recipe",
        "dsv4.training.documents",
        "dsv4.posttraining.verifiers",
        "dsv4.posttraining.rollout",
        "dsv4.posttraining.chat",
        "dsv4.verify.run",
        "dsv4.bench.serving.page",
    ],
)
def test_text_side_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_reading_data_loads_neither_model_nor_optimiser() -> None:
    code = "import sys, dsv4.training.data; sys.exit(bool({'dsv4.model', 'dsv4.training.muon'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
