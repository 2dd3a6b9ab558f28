"""Folders of the released sizes: checked, loaded, served and run, with most weights holes; and layers of the real size
against the reference kernels. Times and memory are printed, they decide nothing."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch

from benchmarks.full_size import HEAD, shown
from benchmarks.sparse_folder import CONFIGS, RandomNumbers, write_full_size, write_sparse
from dsv4.checkpoint import CheckpointReader, check_folder, load_into
from dsv4.config import ModelConfig
from dsv4.kernels import native
from dsv4.model.layers import RELEASE
from dsv4.model.step import PLAIN
from dsv4.model.transformer import Transformer
from tests.conftest import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not native.available(), reason=f"native kernels: {native.why_not()}"),
]
SPACE = 8 << 30  # bytes of disk and of memory that the largest one needs


@pytest.fixture(scope="module", params=["flash", "pro"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("full") / request.param
    if shutil.disk_usage(path.parent).free < SPACE:
        pytest.skip(f"{SPACE >> 30} GiB of disk are not free")
    total = write_full_size(request.param, path)
    used = sum(file.stat().st_blocks * 512 for file in path.iterdir())
    if used > total / 10:
        shutil.rmtree(path)
        pytest.skip("this file system has no holes")
    yield path
    shutil.rmtree(path)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "ignore", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_a_full_size_folder_is_in_order(folder: Path) -> None:
    report = check_folder(folder)
    assert report.ok, report.problems[:3]
    assert report.layout == "release"
    assert report.tensors == {"flash": 69_187, "pro": 145_116}[folder.name]
    print(f"{folder.name}: {report.bytes / 2**30:.2f} GiB")


def test_a_full_size_model_runs_without_flags(folder: Path) -> None:
    """What the plan says of it, an answer of two tokens with what the plan chose, and numerics that are refused."""
    plan = json.loads(run("-m", "dsv4.cli", "plan", str(folder), "--json").stdout)
    print({name: plan[name] for name in ("mode", "expert_memory", "peak", "free", "most_tokens_per_second")})
    assert plan["mode"] == "release"
    assert plan["experts"] == {"flash": 147_169_738_752, "pro": 822_054_223_872}[folder.name]
    if plan["experts"] > plan["free"]:
        assert plan["expert_memory"] < plan["free"]
        assert plan["peak"] <= plan["free"]
    done = run("-m", "dsv4.cli", "generate", str(folder), "--prompt", "Once", "--max-tokens", "2", "--temperature", "0")
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{folder.name}: mode release (the weights are stored in FP8 and FP4)" in done.stderr
    refused = run("-m", "dsv4.cli", "generate", str(folder), "--prompt", "Once", "--mode", "fp32")
    assert refused.returncode == 1
    assert "does not fit: mode fp32" in refused.stderr
    assert "--mode auto needs at least" in refused.stderr


def test_sixteen_tokens_within_a_budget(folder: Path) -> None:
    budget = 4 << 30
    done = run("-m", "benchmarks.full_size", str(folder), "--row", "--expert-memory", "4GiB", "--tokens", "16")
    assert done.returncode == 0, done.stderr[-2000:]
    row = json.loads(done.stdout.splitlines()[-1])
    print(f"\n{folder.name}\n{HEAD}\n{shown(row)}")
    assert row["tokens"] == 16
    assert row["read_per_token"] > 0
    assert row["loaded_file_bytes"] < 2 << 30  # loading reads headers, norms, scales of dense layers, tables
    assert row["anonymous"] < budget + (3 << 30)  # the arena, the cache, torch


def test_a_full_size_model_is_served(folder: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "dsv4.cli", "serve", str(folder), "--port", "0"]
    command += ["--mode", "release", "--expert-memory", "4GiB", "--memory", "1GiB", "--context", "4096"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            ready = next(found for line in server.stderr if (found := re.search(r"ready in (\S+) s - (\S+)", line)))
            print(f"{folder.name}: {ready[0]}")
            body = {"model": folder.name, "prompt": "Once", "max_tokens": 2, "temperature": 0}
            answer = httpx.post(f"{ready[2]}/v1/completions", json=body, timeout=600)
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] == 2
        finally:
            server.send_signal(signal.SIGINT)
            server.stderr.read()
            server.wait(60)


@torch.inference_mode()
@pytest.mark.parametrize("which", ["flash", "pro"])
def test_a_layer_of_each_kind_equals_the_reference(which: str, tmp_path: Path) -> None:
    """Real widths, few experts: sliding window with hash routing, then both compressed kinds with learned routing."""
    config = ModelConfig.from_file(CONFIGS / f"{which}.json").with_changes(
        num_hidden_layers=3,
        num_hash_layers=1,
        num_nextn_predict_layers=0,
        compress_ratios=(0, 4, 128),
        n_routed_experts=8,
        vocab_size=512,
    )
    write_sparse(tmp_path / which, config, RandomNumbers(config))
    models = []
    for impl in (None, "reference"):
        with torch.device("meta"):
            model = Transformer(config, RELEASE, impl, stored_experts=True)
        load_into(model, config, CheckpointReader(tmp_path / which), "release")
        models.append(model.eval())
    tokens = torch.randint(0, 512, (132,))
    x_TSD = torch.randn(len(tokens), config.hc_mult, config.hidden_size).bfloat16()
    for layer, spec in enumerate(config.layers):
        outputs = []
        # learned choices are given: a rounding may swap two experts of nearly equal score
        given = (
            {} if layer == 0 else {layer: torch.rand(len(tokens), 8).argsort(dim=1)[:, : config.num_experts_per_tok]}
        )
        for model in models:
            step = model._step(tokens, model.pack([len(tokens)]), None, None, replace(PLAIN, routes=given))
            outputs.append(model.layers[layer](x_TSD, step).float())
        fast, reference = outputs
        change = reference - x_TSD.float()
        assert change.norm() > 0.1 * x_TSD.float().norm()
        error = float((fast - reference).norm() / change.norm())
        print(f"{which}, {spec.kind}, {spec.routing} routing: relative difference {error:.1e}")
        # a last bit of bfloat16 moves one in 32 inputs of a product to the next FP8 code, an eighth away: 0.022
        assert error < 0.05
