"""The command line is frozen: a new verb or flag is a decision, made here too. Help is quick."""

import inspect
import re
import subprocess
import sys
import time
from importlib import import_module

import pytest

from dsv4.cli.__main__ import VERBS
from dsv4.cli.engine_flags import EngineFlags
from dsv4.cli.eval_flags import AskingFlags, OutcomeFlags
from dsv4.cli.remote_flags import RemoteFlags
from dsv4.cli.run_flags import RunFlags
from dsv4.cli.server_flags import ServerFlags
from dsv4.cli.simulate import ClusterFlags
from dsv4.cli.workload_flags import WorkloadFlags
from tests.conftest import ROOT

FLAGS = {
    "chat": "folder thinking effort system max_tokens temperature top_p seed engine",
    "serve": "folder host port server engine remote",
    "usage": "ledger since key json",
    "pull": "name dir revision source include exclude workers force dry_run",
    "generate": "folder prompt chat thinking max_tokens temperature top_p seed stop engine",
    "render": "file dialect model tokens",
    "doctor": "folder json",
    "plan": "folder free json engine",
    "verify": "target only skip minutes model dialect fixtures questions record bound report json",
    "eval": "target suite model judge judge_model asking outcome",
    "inspect": "model json plot",
    "convert": "src dst experts dtype adapter resume requantize",
    "check": "folder deep json",
    "export": "folder engine gpus goal json",
    "train": "recipe set folder live track table export threads steps device dry_run",
    "sft": "recipe init data lora epochs lr length set run",
    "grpo": "recipe set folder live track export threads steps device",
    "recipe": "name folder stage set device dry_run",
    "distill": "recipe set folder live track export threads steps device",
    "bench": "folder of contexts decode peer long json plot engine",
    "simulate": "model seed json measure cluster load",
    "completion": "shell install",
}
# verbs of a verb: `dsv4 bench serve`
BENCH_FLAGS = {
    "serve": "url against seconds patience most model extra seed remote report json write_trace load",
}


ENGINE_FLAGS = (
    "mode context memory expert_memory device threads numa sequences slowdown cache_dtype queue windows interval "
    "snapshots prefix_dir prefix_disk dialect draft fused adapter"
)
REMOTE_FLAGS = "engine engine_kind engine_silence"
ASKING_FLAGS = "mode data samples limit seed concurrency lengths since until max_tokens temperature"
WORKLOAD_FLAGS = (
    "workload trace rate users requests input output shared turns tool delay speed max_ttft max_tpot max_e2e"
)
CLUSTER_FLAGS = "on hardware nodes tensor expert context sequences step_tokens slowdown price assume"
RUN_FLAGS = "folder held_out live track export threads steps device"
SERVER_FLAGS = (
    "keys insecure any_model free_sampling free_calls requests body_limit drain ledger prices store store_days "
    "store_size history cors mcp runs otel otel_sample otel_content record"
)


def test_shared_flags() -> None:
    assert " ".join(inspect.signature(EngineFlags).parameters) == ENGINE_FLAGS
    assert " ".join(inspect.signature(RemoteFlags).parameters) == REMOTE_FLAGS
    assert " ".join(inspect.signature(RunFlags).parameters) == RUN_FLAGS
    assert " ".join(inspect.signature(WorkloadFlags).parameters) == WORKLOAD_FLAGS
    assert " ".join(inspect.signature(ClusterFlags).parameters) == CLUSTER_FLAGS
    assert " ".join(inspect.signature(ServerFlags).parameters) == SERVER_FLAGS
    assert " ".join(inspect.signature(AskingFlags).parameters) == ASKING_FLAGS
    assert " ".join(inspect.signature(OutcomeFlags).parameters) == "out compare least price dry_run"


def test_flags_of_the_engine_are_arguments_of_load() -> None:
    from dsv4.api.loading import load

    options = EngineFlags().options()
    arguments = inspect.signature(load).parameters
    assert set(options) | {"folder", "step_tokens", "say", "speculate"} == set(arguments)
    same = {name: value for name, value in options.items() if name not in ("sequences", "reuse")}
    assert same == {name: arguments[name].default for name in same}
    for verb in ("serve", "chat", "generate", "bench", "plan"):
        command = getattr(import_module(f"dsv4.cli.{verb}"), verb)
        assert inspect.signature(command).parameters["engine"].default == EngineFlags()


def test_verbs_and_flags() -> None:
    found = {
        verb: " ".join(inspect.signature(getattr(import_module(f"dsv4.cli.{verb}"), verb)).parameters) for verb in VERBS
    }
    assert found == FLAGS
    inner = {verb: getattr(import_module(f"dsv4.cli.bench_{verb}"), f"bench_{verb}") for verb in BENCH_FLAGS}
    assert {verb: " ".join(inspect.signature(inner[verb]).parameters) for verb in inner} == BENCH_FLAGS


def test_the_readme_has_a_row_for_every_verb() -> None:
    rows = [
        line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `dsv4 ")
    ]
    told = {" ".join(re.findall(r"^\| `dsv4 (\w+)(?: (serve))?", row)[0]).strip() for row in rows}
    assert {*VERBS, *(f"bench {inner}" for inner in BENCH_FLAGS)} - told == set()


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['dsv4', '--help']\nfrom dsv4.cli.__main__ import make_app\n"
    code += "make_app()(['--help'], exit_on_error=False, result_action='return_value')\n"
    code += "heavy = {'torch', 'tokenizers', 'starlette', 'transformers'} & set(sys.modules)\n"
    code += "sys.exit(str(heavy) if heavy else 0)"
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    print(f"dsv4 --help: {time.perf_counter() - start:.2f} s")  # reported, never judged
    assert result.returncode == 0, result.stderr
    assert all(verb in result.stdout for verb in VERBS)


@pytest.mark.parametrize("module", ["dsv4", "dsv4.cli"])
def test_a_mistake_is_a_sentence(module: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", module, "inspect", "no/such/folder"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("dsv4: no/such/folder")
    assert "Traceback" not in result.stderr
