"""Every suite that takes minutes, one after another, going on after a failure; a table at the end.

    python3 run.py test --slow              all of them
    python3 run.py test --slow soak agents  some of them

Run alone: several of them load both cores and measure.
"""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

from tests.conftest import ROOT


@dataclass(frozen=True, slots=True)
class Suite:
    """A name and the test files whose slow tests it runs."""

    name: str
    files: tuple[str, ...]
    what: str


SUITES = (
    Suite("soak", ("engine/test_soak.py",), "2,000 random requests in six settings"),
    Suite("kills", ("cache/test_disk.py",), "200 writers of the disk cache killed at random moments"),
    Suite("load", ("server/test_load.py",), "64 clients for a minute"),
    Suite("schemathesis", ("server/test_openapi.py",), "requests generated from the schema, at length"),
    Suite("thinking", ("server/test_extensions.py",), "the bundled model keeps a thinking budget"),
    Suite("verify", ("verify/test_verify_nano.py",), "`dsv4 verify` of the bundled model, all checks"),
    Suite(
        "capacity",
        ("simulate/test_against_engine.py",),
        "`dsv4 simulate` beside the real engine with the bundled model and with `mid`",
    ),
    Suite("page", ("server/test_chat_page.py",), "the plain chat page in Chromium"),
    Suite("tools", ("web/test_tools_in_browser.py",), "tools and MCP servers of the web chat in Chromium"),
    Suite("files", ("web/test_files_and_scrolling.py",), "files, Markdown and a long conversation in Chromium"),
    Suite("operators", ("web/test_operator_pages.py",), "the pages of engine, usage, training and model in Chromium"),
    Suite("web", ("web/test_typescript.py",), "types and unit tests of the pages, by Node"),
    Suite("browser", ("web/test_chat_in_browser.py",), "the chat in Chromium"),
    Suite("sizes", ("cli/test_full_size.py",), "folders of the released sizes, most of their weights holes"),
    Suite("ranks", ("distributed/test_ranks.py", "distributed/test_torchrun.py"), "training in several processes"),
    Suite("sanitizers", ("kernels/test_sanitizers.py",), "kernels under AddressSanitizer and UBSan, on every ISA"),
    Suite("units", ("kernels/test_plain_units.py", "kernels/test_old_compilers.py"), "units and compilers of others"),
    Suite("arm64", ("kernels/test_arm64.py",), "products on an emulated arm64"),
    Suite("rayserve", ("deploy/test_ray_serve.py",), "the Ray Serve example answers, with a stub engine behind it"),
    Suite("vllm", ("backends/test_real_vllm.py",), "`dsv4 serve --engine` in front of two vLLM servers, both killed"),
    Suite("workers", ("posttraining/test_ray_workers.py",), "rollout workers of a local Ray cluster, one killed"),
    Suite("wheels", ("deploy/test_wheels.py",), "both wheels in a new environment without a compiler"),
    Suite("gguf", ("checkpoint/test_gguf_peers.py",), "the bundled model as a GGUF file in llama.cpp and flyweight"),
    Suite("agents", ("agents/test_agents.py",), "real agents from npm and PyPI"),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a suite went: its exit status, what pytest counted, seconds of the clock and of the processor, and the memory
    of its largest process in bytes."""

    suite: Suite
    status: int
    counted: str
    seconds: float
    processor: float
    memory: int

    @property
    def result(self) -> str:
        if self.status:
            return "FAILED"
        return "passed" if "passed" in self.counted else "skipped"


def chosen(names: list[str]) -> list[Suite]:
    """The suites of these names, all for none. Raises ValueError for an unknown one."""
    known = {suite.name: suite for suite in SUITES}
    for name in names:
        if name not in known:
            raise ValueError(f"suite must be one of {', '.join(known)}, got {name!r}")
    return [known[name] for name in names] or list(SUITES)


def run(suite: Suite) -> Outcome:
    """Run one, its output shown as it comes."""
    files = [f"tests/{file}" for file in suite.files]
    start, counted = time.monotonic(), ""
    command = [sys.executable, "-m", "pytest", "-m", "slow", "-rs", "--color=no", *files]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                counted = line.strip(" =\n") if re.search(r"\d+ (passed|failed|error|skipped)", line) else counted
        except KeyboardInterrupt:
            process.terminate()
            raise
        _, status, used = os.wait4(process.pid, 0)  # as `wait`, and what it and its own children have used
        process.returncode = os.waitstatus_to_exitcode(status)
    counted, seconds = re.sub(r" in [\d.]+s.*", "", counted), time.monotonic() - start
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return Outcome(suite, process.returncode, counted, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * unit)


def table(outcomes: list[Outcome]) -> str:
    """A line a suite: result, seconds, those of the processor, the memory of its largest process, what pytest
    counted."""
    width = max(len(outcome.suite.name) for outcome in outcomes)
    return "\n".join(
        f"{o.suite.name:<{width}}  {o.result:<7}  {o.seconds:>6.0f} s  {o.processor:>6.0f} s cpu"
        f"  {o.memory / 2**30:>5.1f} GiB  {o.counted}"
        for o in outcomes
    )


def main(names: list[str]) -> int:
    """Exit status: 0 if no suite failed, 1 if one did, 2 for an unknown name, 130 after Ctrl-C."""
    try:
        suites = chosen(names)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    outcomes: list[Outcome] = []
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for suite in suites:
            print(f"\n== {suite.name}: {suite.what}", flush=True)
            outcomes.append(run(suite))
    except KeyboardInterrupt:
        print("\nended by Ctrl-C")
    if outcomes:
        print(f"\n{table(outcomes)}")
    if len(outcomes) < len(suites):
        return 130
    return int(any(outcome.status for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
