"""What the benchmarks make of their measurements: yardsticks in turns, no rate from times that cannot give one, and
no process left behind."""

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import full_size, speculation
from benchmarks.peers import Answer, descendants, end, middle, rates_of, shown, table
from dsv4.bench import kernels as measure_kernels
from dsv4.bench.kernels import Timed, beside, in_turns
from dsv4.bench.speed import Ours
from dsv4.generation import SamplingParams
from tests.conftest import ROOT

NANO = ROOT / "models" / "nano"


def test_a_figure_and_its_yardstick_are_measured_in_turns() -> None:
    called: list[str] = []

    def rates(name: str, *values: float) -> Iterator[float]:
        for value in values:
            called.append(name)
            yield value

    one, other = rates("kernel", 3.0, 5.0, 4.0), rates("sum", 7.0, 1.0, 2.0)
    assert in_turns(3, one.__next__, other.__next__) == [5.0, 7.0]
    assert called == ["kernel", "sum"] * 3


def test_as_many_tokens_are_timed_as_were_asked_for() -> None:
    """The bundled model names end tokens in two files, and ends an answer to random tokens at once."""
    speed = Ours(NANO, 512, mode="fp32").run(64, 100)
    assert speed.decode_rate > 0


def test_accepted_drafts_are_counted_up_to_the_end_of_an_answer() -> None:
    """What a model says behind its end token is no text of its own, and its drafts are worse there."""
    model = speculation.opened(NANO, "fp32", True)
    (end,) = model.engine.ends
    params = SamplingParams(max_tokens=60, temperature=0, logit_bias=((end, 100.0),))
    assert speculation.answer(model, [0, 5, 6, 7], params) == ([end], pytest.approx(0, abs=0.1), 0)


@pytest.mark.parametrize("fails", ["open", "preadv", None])
def test_the_disk_is_measured_without_direct_reads_and_the_row_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str | None
) -> None:
    """Of what refuses direct reads some file systems refuse to open, others to read."""
    (tmp_path / "a.safetensors").write_bytes(bytes(2 * full_size.BLOCK))
    real_open, real_read, flag = os.open, os.preadv, os.O_DIRECT
    direct: set[int] = set()

    def opened(path: Any, flags: int, *more: Any, **others: Any) -> int:
        if flags & flag and fails == "open":
            raise OSError(errno.EINVAL, "Invalid argument")
        handle = real_open(path, flags & ~flag, *more, **others)
        (direct.add if flags & flag else direct.discard)(handle)
        return handle

    def read(handle: int, *more: Any) -> int:
        if handle in direct and fails == "preadv":
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_read(handle, *more)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "preadv", read)
    disk = full_size.Disk(tmp_path)
    disk.measure(0.02)
    assert disk.direct is (fails is None)
    assert max(disk.rates().values()) > 0
    row: dict[str, Any] = dict.fromkeys(
        ("budget", "import_cpu", "import_wall", "load_cpu", "load_wall", "first_cpu", "first_wall", "tokens_per_s",
         "decode_cpu", "tokens", "read_per_token", "needed_per_token", "hits", "foreseen", "read_rate", "disk_rate",
         "busy", "waiting", "peak"), 1,
    )  # fmt: skip
    line = full_size.shown({**row, "cold": False, "direct": disk.direct})
    assert ("THE PAGE CACHE MAY SERVE THE DISK" in line) is (fails is not None)
    assert line.count("|") == full_size.HEAD.splitlines()[0].count("|")


def test_each_figure_has_a_yardstick_of_its_own_time() -> None:
    called: list[str] = []
    kernel, product = Timed(lambda: called.append("kernel"), 1e9), Timed(lambda: called.append("product"), 1e9)
    for name in ("a", "b"):
        rate = beside(name, kernel, product)
        assert rate.kernel == name
        assert rate.unit == "GFLOP/s"
        assert rate.ratio == rate.rate / rate.yardstick
    assert called == ["kernel", "product"] * 2 * (1 + measure_kernels.TRIES)


def test_every_kernel_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_kernels, "WIDTH", 128)
    monkeypatch.setattr(measure_kernels, "WEIGHTS", 1 << 18)
    monkeypatch.setattr(measure_kernels, "TRIES", 1)
    rates = [*measure_kernels.gemv(), *measure_kernels.gemm(), *measure_kernels.flash_layer(6, 128, 128, 2)]
    rates += [*measure_kernels.indexer(600, 2, 32), *measure_kernels.attention(2, 64, 16)]
    assert [rate.unit for rate in rates] == ["GB/s"] * 8 + ["GFLOP/s"] * 12 + ["layers/s"] * 4 + ["GFLOP/s"] * 3
    assert all(rate.rate > 0 and rate.yardstick > 0 for rate in rates)


@pytest.mark.parametrize(
    ("long", "wanted"),
    [
        (Answer(3.0, 8, 65), 32.0),
        (Answer(1.0, 8, 65), None),
        (Answer(0.9, 8, 65), None),
        (Answer(3.0, 8, 1), None),
        (Answer(3.0, 8, 0), None),
    ],
)
def test_a_decode_rate_is_positive_or_none(long: Answer, wanted: float | None) -> None:
    assert rates_of(Answer(2.0, 500, 1), Answer(1.0, 8, 1), long) == (250.0, wanted)
    assert rates_of(Answer(2.0, 0, 1), Answer(1.0, 0, 1), long) == (None, wanted)


def test_what_could_not_be_measured_counts_for_nothing() -> None:
    assert middle([None, 3.0, 1.0, 2.0]) == 2.0
    assert middle([None, None]) is None
    assert shown(3.14159, "8.1f") == "     3.1"
    assert shown(None, "8.1f") == "       -"


def test_an_engine_that_fails_is_told_and_the_others_are_measured(tmp_path: Path) -> None:
    """The file that it is to read is made first."""
    engine = tmp_path / "engine"
    engine.write_text("#!/bin/sh\necho it is out of order >&2\nexit 3\n")
    engine.chmod(0o755)
    command = [sys.executable, "-m", "benchmarks.peers", str(NANO), f"--gguf={tmp_path / 'nano.gguf'}", "--threads=1"]
    command += [f"--llama={engine}", "--prompt=8", "--decode=2", "--rounds=1", f"--json={tmp_path / 'rows'}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1, run.stderr
    assert "llama.cpp ended with 3: it is out of order" in run.stderr
    assert (tmp_path / "nano.gguf").exists()
    ours, theirs = map(json.loads, (tmp_path / "rows").read_text().splitlines())
    assert (ours["engine"], theirs["engine"]) == ("dsv4", "llama.cpp")
    assert ours["prefill"] > 0
    assert theirs["prefills"] == []
    assert theirs["prefill"] is None


VLLM = """
import time
from types import SimpleNamespace as Told

now = 0.0
time.perf_counter = lambda: now  # so that the rates are known


class SamplingParams:
    def __init__(self, max_tokens, temperature, ignore_eos, detokenize):
        assert temperature == 0 and ignore_eos
        self.count = max_tokens


class LLM:
    def __init__(self, model, max_model_len, max_num_seqs, enable_prefix_caching):
        self.seen, self.most = [], max_model_len

    def generate(self, prompt, sampling, use_tqdm):
        tokens = prompt["prompt_token_ids"]
        assert len(tokens) + sampling.count <= self.most
        cached = len(tokens) - 1 if tokens in self.seen else 0
        self.seen.append(tokens)
        global now
        now += 0.25 * sampling.count + 0.5 * (len(tokens) - cached)
        return [Told(num_cached_tokens=cached or None, outputs=[Told(token_ids=tokens[:1] * sampling.count)])]
"""


def test_vllm_is_asked_for_a_new_prompt_each_round_and_twice_for_a_computed_one(tmp_path: Path) -> None:
    """With a stand-in that has the names of vLLM 0.32: the real one needs a processor with AMX for these formats."""
    (tmp_path / "vllm.py").write_text(VLLM)
    engine = tmp_path / "engine"
    engine.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}:$PYTHONPATH" exec "{sys.executable}" "$@"\n')
    engine.chmod(0o755)
    command = [sys.executable, "-m", "benchmarks.peers", str(NANO), f"--vllm={engine}", "--threads=1", "--prompt=8"]
    command += ["--decode=4", "--rounds=2", f"--json={tmp_path / 'rows'}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    _, theirs = map(json.loads, (tmp_path / "rows").read_text().splitlines())
    assert theirs["engine"] == "vllm"
    assert theirs["prefills"] == [8 / (0.25 + 0.5 * 8)] * 2
    assert theirs["decodes"] == [4.0] * 2


def test_other_engines_need_a_file_with_texts(tmp_path: Path) -> None:
    ask = [sys.executable, "-m", "benchmarks.peers", str(tmp_path), f"--llama={sys.executable}"]
    for more, problem in (((), "need --gguf FILE"), ((f"--gguf={tmp_path / 'm.gguf'}",), "has no tokenizer.json")):
        run = subprocess.run([*ask, *more], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 1
        assert problem in run.stderr


def test_ratios_are_to_ours_of_the_same_rounds() -> None:
    def row(engine: str, prefill: float) -> dict[str, str | float | None]:
        return {"engine": engine, "prefill": prefill, "decode": None}

    lines = list(
        table([row("dsv4", 100.0), row("llama.cpp", 50.0), row("dsv4", 120.0), row("transformers-fp32", 40.0)])
    )
    assert ["(2.00x)" in line for line in lines] == [False, False, True, False, False]
    assert "(3.00x)" in lines[4]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="descendants are read from /proc")
def test_nothing_that_a_worker_started_is_left() -> None:
    """A server in a session of its own that ignores SIGTERM, started by a worker that started it through another."""
    server = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    between = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {server!r}], start_new_session=True)"
    worker = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {between!r}])"
    with subprocess.Popen([sys.executable, "-c", worker], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        family = descendants(process.pid)
        assert len(family) == 2
        end(process, patience=5)
    for _ in range(200):
        if not any(alive(pid) for pid in family):
            break
        time.sleep(0.05)
    assert not [pid for pid in family if alive(pid)]


def alive(pid: int) -> bool:
    """Whether it runs; one that ended and waits to be collected does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
