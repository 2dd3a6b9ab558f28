#!/usr/bin/env python3
"""Set up and run dsv4 with nothing but Python 3.11+.

    python3 run.py              set up, then serve the bundled model on http://127.0.0.1:8000
    python3 run.py test         set up with the test tools, then lint, types and tests
    python3 run.py setup        set up only; afterwards `.venv/bin/dsv4` is the command
    python3 run.py VERB ...     set up, then `dsv4 VERB ...` (chat, inspect, bench, ...)
    python3 run.py clean        remove the environment

Everything is installed into .venv beside this file. A second run starts in well under a second.
DSV4_TORCH_INDEX=URL takes torch from another package index; --yes accepts a large torch download.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
STAMP = VENV / "dsv4-setup.json"
TORCH = "torch==2.13.0"
LEVELS = {"run": "", "test": "[test]"}


def fail(message: str) -> None:
    """One clear sentence, exit code 1."""
    print(f"run.py: {message}", file=sys.stderr)
    sys.exit(1)


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def fingerprint() -> str:
    """What the environment was made from: requirement files, Python, and where the project lies."""
    digest = hashlib.sha256(f"{sys.version}{platform.machine()}{ROOT}".encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def is_ready(level: str) -> bool:
    """Whether the environment exists, is current, and has at least this level's packages."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return False
    levels = list(LEVELS)
    known = stamp.get("level") in LEVELS and levels.index(stamp["level"]) >= levels.index(level)
    return known and stamp.get("fingerprint") == fingerprint() and PYTHON.exists()


def make_venv() -> None:
    """Create .venv when it is missing or broken."""
    if PYTHON.exists():
        check = [str(PYTHON), "-c", "import sys, pip; sys.exit(sys.version_info[:2] < (3, 11))"]
        if subprocess.run(check, capture_output=True).returncode == 0:
            return
        shutil.rmtree(VENV)
    made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True)
    if made.returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        hint = "on Debian or Ubuntu: apt install python3-venv"
        fail(f"cannot create {VENV}: {(made.stderr or made.stdout).strip()}\n({hint})")


def pip(arguments: list[str], what: str) -> None:
    """Run pip, showing what it is busy with; on failure its last lines and what may be wrong."""
    command = [str(PYTHON), "-m", "pip", *arguments, "--disable-pip-version-check", "--no-input"]
    start, lines = time.monotonic(), []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    assert process.stdout is not None
    live = sys.stderr.isatty()
    for line in process.stdout:
        lines.append(line.rstrip())
        busy = line.strip().split("\n")[0][:70]
        if live and busy.startswith(("Collecting", "Downloading", "Installing", "Using cached", "Processing")):
            print(f"\r\033[K  {what}: {busy}", end="", file=sys.stderr, flush=True)
    if process.wait():
        tail = "\n".join(line for line in lines[-12:] if line)
        offline = any(word in tail for word in ("Could not find a version", "Connection", "retries", "resolve"))
        hint = "\nIs the package index reachable? Set-up needs it once." if offline else ""
        fail(f"installing {what} failed:\n{tail}{hint}")
    print(
        ("\r\033[K" if live else "") + f"  {what}: {time.monotonic() - start:.0f} s",
        file=sys.stderr,
        flush=True,
    )


def has_nvidia() -> bool:
    return Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None


def install_torch(accept_large: bool) -> None:
    """Install torch first and pinned, without pulling gigabytes of CUDA onto a machine that cannot use them."""
    probe = subprocess.run(
        [str(PYTHON), "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True
    )
    if probe.returncode == 0 and probe.stdout.strip().split("+")[0] == TORCH.split("==")[1]:
        return
    index = os.environ.get("DSV4_TORCH_INDEX")
    if index:
        pip(["install", "--index-url", index, TORCH], "torch")
        return
    if platform.system() == "Linux" and platform.machine() == "x86_64" and not has_nvidia():
        say("  torch: looking for a CPU build")
        report = subprocess.run(
            [
                str(PYTHON),
                "-m",
                "pip",
                "install",
                "--dry-run",
                "--quiet",
                "--no-deps",
                "--report",
                "-",
                TORCH,
            ],
            capture_output=True,
            text=True,
        )
        if report.returncode:
            fail(f"cannot find {TORCH}:\n{report.stderr.strip()[-600:]}\nIs the package index reachable?")
        if "%2Bcpu" not in report.stdout and "+cpu" not in report.stdout and not accept_large:
            say(
                "pip would take torch with CUDA libraries: about 2.7 GB, and this machine has no NVIDIA driver.\n"
                "Point DSV4_TORCH_INDEX at an index with CPU builds, or run again with --yes to take the large one."
            )
            sys.exit(1)
    pip(["install", "--constraint", str(ROOT / "constraints.txt"), TORCH], "torch")


def set_up(level: str, accept_large: bool) -> None:
    """Bring .venv to `level`; does nothing when it is current."""
    if is_ready(level):
        return
    start = time.monotonic()
    say(f"setting up {VENV}")
    make_venv()
    install_torch(accept_large)
    constraint = ["--constraint", str(ROOT / "constraints.txt")]
    pip(["install", *constraint, "--editable", f"{ROOT}{LEVELS[level]}"], "dsv4 and its libraries")
    build_kernels()
    STAMP.write_text(json.dumps({"level": level, "fingerprint": fingerprint()}))
    say(f"ready in {time.monotonic() - start:.0f} s: {BIN / 'dsv4'}")


def build_kernels() -> None:
    """Compile the native kernels; without a compiler plain torch runs, and this says so."""
    start = time.monotonic()
    if sys.stderr.isatty():
        print("  native kernels: compiling", end="", file=sys.stderr, flush=True)
    code = "from dsv4.kernels import native; print(native.describe())"
    result = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, cwd=ROOT)
    text = result.stdout.strip() if result.returncode == 0 else f"not built: {result.stderr.strip()[-300:]}"
    clear = "\r\033[K" if sys.stderr.isatty() else ""
    print(f"{clear}  kernels: {text}, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def run_tests(arguments: list[str]) -> int:
    """Lint, format, types, then the tests; extra arguments go to pytest and skip the gates."""
    tools = [str(PYTHON), "-m"]
    folders = ["dsv4", "tests", "recipes", "benchmarks", "run.py"]
    gates = [
        [*tools, "ruff", "check", *folders],
        [*tools, "ruff", "format", "--check", "--quiet", *folders],
        [str(BIN / "pyrefly"), "check", "--summary=none"],
    ]
    for gate in [] if arguments else gates:
        say("$ " + " ".join(Path(part).name if i == 0 else part for i, part in enumerate(gate)))
        if subprocess.run(gate, cwd=ROOT).returncode:
            return 1
    workers = [] if arguments else ["-n", str(min(2, os.cpu_count() or 1))]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return subprocess.run([*tools, "pytest", *workers, *arguments], cwd=ROOT, env=environment).returncode


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 (someone may start this file with an older one)
        fail(f"Python 3.11 or newer is needed, this is {platform.python_version()}")
    arguments = sys.argv[1:]
    accept_large = "--yes" in arguments or bool(os.environ.get("CI"))
    arguments = [argument for argument in arguments if argument != "--yes"]
    verb = arguments[0] if arguments else "serve"
    if verb in ("-h", "--help", "help"):
        print(__doc__)
        return
    if verb == "clean":
        shutil.rmtree(VENV, ignore_errors=True)
        return
    set_up("test" if verb == "test" else "run", accept_large)
    if verb == "setup":
        return
    if verb == "test":
        sys.exit(run_tests(arguments[1:]))
    command = [str(BIN / "dsv4"), *(arguments or ["serve"])]
    if os.name == "nt":
        sys.exit(subprocess.run(command).returncode)
    os.execv(command[0], command)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
