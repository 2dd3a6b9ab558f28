"""Parameters, cache bytes and FLOPs: the report's numbers, and those of real modules."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

import dsv4
from dsv4.cli.inspect_peer import V32
from dsv4.config import ModelConfig
from dsv4.model import accounting as a
from dsv4.model.transformer import Transformer
from dsv4.testing.tiny import tiny_config

MILLION = 1048576
# total and active parameters in units of 1e9; bytes per token; times smaller than V3.2 at 1M; share of its FLOPs
REPORT = {
    "flash": (284.33, 13.27, 3514.25, 13.67, 0.102),
    "pro": (1572.997, 48.85, 5031.4375, 9.55, 0.270),
}
PREDICTION = {"flash": 6.6, "pro": 25.8}


def released(name: str) -> ModelConfig:
    return ModelConfig.from_file(Path(dsv4.__file__).parent / "configs" / f"{name}.json")


@pytest.mark.parametrize("name", REPORT)
def test_parameters_are_the_reports(name: str) -> None:
    p = a.parameters(released(name))
    total, active = REPORT[name][:2]
    assert p.total / 1e9 == pytest.approx(total, abs=0.005 if name == "flash" else 0.0005)
    assert p.active / 1e9 == pytest.approx(active, abs=0.005)
    assert p.mtp / 1e9 == pytest.approx(PREDICTION[name], abs=0.05)


@pytest.mark.parametrize("name", REPORT)
def test_cache_bytes_are_the_reports(name: str) -> None:
    config = released(name)
    _, _, per_token, smaller, _ = REPORT[name]
    assert (a.entry_bytes(config), a.index_bytes(config)) == (584, 68)
    assert a.kv_bytes_per_token(config) == per_token
    assert a.window_bytes(config) == config.num_hidden_layers * 128 * 584
    assert a.kv_bytes(config, MILLION) == per_token * MILLION + a.window_bytes(config)
    assert V32.kv_bytes_per_token() == 48068
    assert V32.kv_bytes_per_token() * MILLION / a.kv_bytes(config, MILLION) == pytest.approx(smaller, abs=0.005)


@pytest.mark.parametrize("name", REPORT)
def test_flops_are_the_reports_share(name: str) -> None:
    share = a.flops_per_token(released(name), MILLION).total / V32.flops_per_token(MILLION).total
    assert share == pytest.approx(REPORT[name][4], abs=0.001)


@pytest.mark.parametrize("name", REPORT)
def test_flops_grow_only_in_attention_and_indexer(name: str) -> None:
    costs = [a.flops_per_token(released(name), position) for position in a.CONTEXTS]
    assert len({cost.linear for cost in costs}) == 1
    for before, after in pairwise(costs):
        assert after.attention > before.attention
        assert after.indexer > before.indexer
        assert after.total == after.linear + after.attention + after.indexer


PLANS = {
    "tiny": {},
    "pro-like": {"compress_ratios": (128, 128, 4, 16, 0), "num_hash_layers": 3},
    "no prediction": {"num_nextn_predict_layers": 0, "compress_ratios": (0, 4, 128, 4)},
    "other shapes": {"hc_mult": 2, "num_attention_heads": 6, "o_groups": 3, "num_hash_layers": 0, "vocab_size": 50},
}


@pytest.mark.parametrize("name", PLANS)
def test_parameters_are_those_of_the_modules(name: str) -> None:
    config = tiny_config(**PLANS[name])
    with torch.device("meta"):
        model = Transformer(config)
    counted = a.parameters(config)
    assert counted.mtp == sum(p.numel() for p in model.mtp.parameters())
    assert counted.total + counted.mtp == sum(p.numel() for p in model.parameters())
    assert counted.embedding == model.embed.weight.numel()
    assert counted.routed_experts == sum(p.numel() for b in model.layers for p in b.ffn.experts.parameters())
    assert counted.shared_experts == sum(p.numel() for b in model.layers for p in b.ffn.shared_experts.parameters())
    own = dict(model.layers.named_parameters())
    for part, mark in (("indexers", ".indexer."), ("compressors", ".attn.compressor."), ("routers", ".gate.")):
        numbers = sum(p.numel() for key, p in own.items() if mark in key and ".norm." not in key)
        assert getattr(counted, part) == numbers, part


def test_active_counts_the_experts_one_token_meets_and_no_embedding() -> None:
    config = tiny_config()
    counted = a.parameters(config)
    unused = (config.n_routed_experts - config.num_experts_per_tok) / config.n_routed_experts
    assert counted.active == counted.total - counted.embedding - unused * counted.routed_experts
