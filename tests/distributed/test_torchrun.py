"""`dsv4 train` and `dsv4 sft` under torchrun, to a model that loads; what is said about a wrong number of processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dsv4.checkpoint import CheckpointReader, load_into
from dsv4.config import ModelConfig
from dsv4.model.transformer import Transformer
from dsv4.training.logbook import read_log
from tests.cli.test_sft import write_base, write_talks
from tests.conftest import ROOT

RECIPE = """
name = "ranks"
[model]
hidden_size = 32
num_hidden_layers = 3
num_hash_layers = 1
num_nextn_predict_layers = 1
num_attention_heads = 2
head_dim = 32
qk_rope_head_dim = 16
q_lora_rank = 32
o_groups = 1
o_lora_rank = 128
sliding_window = 16
compress_ratios = [0, 4, 16, 0]
index_n_heads = 16
index_head_dim = 32
index_topk = 4
n_routed_experts = 4
num_experts_per_tok = 2
moe_intermediate_size = 32
routed_scaling_factor = 1.5
swiglu_limit = 10.0
[data]
vocabulary = 600
pool = 4
micro = 256
[[data.sources]]
name = "docs"
kind = "text"
path = "DOCS"
[[stages]]
tokens = 1000
length = 128
[lr]
peak = 1e-3
final = 1e-4
warmup = 100
decay_from = 500
decay_to = 1000
[batch]
full = 256
[scale]
expert = 2
timeout = 60.0
"""


def _train(processes: int, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return _run(processes, "train", str(folder / "recipe.toml"), "--folder", str(folder / "run"), *more)


def _run(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "dsv4.cli", *arguments, "--live", "-1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_train_on_two_ranks_then_on_one(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("DOCS", str(ROOT / "docs")), encoding="utf-8")
    done = _train(2, tmp_path, "--threads", "1")
    assert done.returncode == 0, done.stderr[-3000:]
    lines = list(read_log(tmp_path / "run" / "log.jsonl"))
    assert len(lines) >= 3
    assert lines[-1]["tokens"] + 256 >= 1000
    reader, config = CheckpointReader(tmp_path / "run" / "model"), ModelConfig.from_file(tmp_path / "run" / "model")
    with torch.device("meta"):
        model = Transformer(config)
    load_into(model, config, reader, "fp32")  # raises for a name too many or too few
    assert all(torch.isfinite(p).all() for p in model.parameters())
    more = _train(1, tmp_path, "--set", "scale.expert=1", "--export", "none")
    assert more.returncode == 0, more.stderr[-3000:]
    assert len(list(read_log(tmp_path / "run" / "log.jsonl"))) == len(lines)
    wrong = _train(1, tmp_path)
    assert wrong.returncode != 0
    assert "expert 2 needs 2 processes, but 1 were started" in wrong.stderr + wrong.stdout


@pytest.mark.slow
def test_fine_tuning_on_two_ranks_starts_from_the_base(tmp_path: Path) -> None:
    base, data = write_base(tmp_path / "base"), write_talks(tmp_path / "talks.jsonl")
    common = ("sft", "--init", str(base), "--data", str(data), "--threads", "1", "--set", "scale.data=2")
    for name, rate in (("still", "1e-30"), ("moved", "1e-2")):
        done = _run(2, *common, "--folder", str(tmp_path / name), "--lr", rate)
        assert done.returncode == 0, done.stderr[-3000:]
    start, still, moved = (CheckpointReader(tmp_path / name) for name in ("base", "still/model", "moved/model"))
    assert set(start.names()) == set(still.names())
    for name in start.names():  # zeros have moved by the rate
        torch.testing.assert_close(still.tensor(name), start.tensor(name), rtol=0, atol=1e-25, msg=name)
    assert not all(torch.equal(start.tensor(name), moved.tensor(name)) for name in start.names())
    losses = [line["next"] for line in read_log(tmp_path / "moved" / "log.jsonl")]
    assert losses[-1] < losses[0] / 2
    for flags, message in ((("--lora", "2"), "--lora: adapters"), (("--held-out", str(data)), "--held-out: the loss")):
        refused = _run(2, *common, "--folder", str(tmp_path / "no"), "--set", "scale.data=2", *flags)
        assert refused.returncode != 0
        assert message in refused.stderr + refused.stdout
