"""The whole model: names, prediction block, collapse, numerics, memory."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dsv4.config import ModelConfig
from dsv4.model.layers import BF16, FP32, RELEASE, Numerics
from dsv4.model.transformer import Transformer
from dsv4.testing.graph import graph_is_freed
from dsv4.testing.tiny import tiny_config, tiny_model

LENGTHS = [150, 9]


def tokens_of(lengths: list[int]) -> Tensor:
    return torch.randint(0, tiny_config().vocab_size, (sum(lengths),))


def on_meta(config: ModelConfig) -> Transformer:
    with torch.device("meta"):
        return Transformer(config)


def names(config: ModelConfig) -> set[str]:
    return set(on_meta(config).state_dict())


def test_names_are_the_released_ones(reference_data: Path) -> None:
    folder = reference_data / "reference" / "flash_like"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    released = {name for name in index["weight_map"] if not name.endswith(".scale")}
    assert names(ModelConfig.from_file(folder)) == released


@pytest.mark.parametrize("name", ["flash", "pro"])
def test_names_of_the_released_models(reference_data: Path, name: str) -> None:
    """The list holds expert 0 for all experts."""
    folder = reference_data / "configs"
    listed = json.loads((folder / f"{name}_release_tensors_expert0_only.json").read_text())
    config = ModelConfig.from_file(folder / f"{name}_hf_config.json")
    few = config.with_changes(n_routed_experts=1, num_experts_per_tok=1)
    assert names(few) == {name for name in listed if not name.endswith(".scale")}


def test_names_of_each_part() -> None:
    own = names(tiny_config())
    attention = {"attn_sink", "wq_a.weight", "q_norm.weight", "wq_b.weight", "wkv.weight", "kv_norm.weight"}
    attention |= {"wo_a.weight", "wo_b.weight"}
    compressor = {f"compressor.{part}" for part in ("ape", "wkv.weight", "wgate.weight", "norm.weight")}
    indexer = {"indexer.wq_b.weight", "indexer.weights_proj.weight"}
    indexer |= {f"indexer.{name}" for name in compressor}
    for layer, expected in enumerate((attention, attention | compressor | indexer, attention | compressor)):
        prefix = f"layers.{layer}.attn."
        assert {name.removeprefix(prefix) for name in own if name.startswith(prefix)} == expected
    assert {name for name in own if "tid2eid" in name} == {"layers.0.ffn.gate.tid2eid"}
    assert {f"layers.{i}.ffn.gate.bias" for i in (1, 2, 3)} | {"mtp.0.ffn.gate.bias"} == {
        name for name in own if name.endswith("gate.bias")
    }
    top = {"embed.weight", "head.weight", "norm.weight", "hc_head_fn", "hc_head_base", "hc_head_scale"}
    assert {name for name in own if not name.startswith(("layers.", "mtp."))} == top
    extra = {"e_proj.weight", "h_proj.weight", "enorm.weight", "hnorm.weight", "norm.weight"}
    extra |= {name for name in top if name.startswith("hc_head")}
    assert extra <= {name.removeprefix("mtp.0.") for name in own}


def test_no_prediction_block_when_the_config_has_none() -> None:
    config = tiny_config(num_nextn_predict_layers=0, compress_ratios=(0, 4, 128, 4))
    assert not [name for name in names(config) if name.startswith("mtp.")]


@torch.no_grad()
def test_the_head_reads_a_weighted_sum_of_the_streams() -> None:
    model = tiny_model()
    c = model.config
    x_TSD = torch.randn(3, c.hc_mult, c.hidden_size)
    flat = x_TSD.flatten(1).double()
    mixes = flat / (flat.square().mean(1, keepdim=True) + c.rms_norm_eps).sqrt() @ model.hc_head_fn.double().T
    pre_TS = (mixes * model.hc_head_scale + model.hc_head_base).sigmoid() + c.hc_eps
    y_TD = (pre_TS[..., None] * x_TSD).sum(1)
    y_TD = y_TD / (y_TD.square().mean(1, keepdim=True) + c.rms_norm_eps).sqrt() * model.norm.weight
    wanted = y_TD @ model.head.weight.double().T
    torch.testing.assert_close(model.logits(x_TSD).double(), wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_prediction_has_its_own_collapse_and_norm_and_shares_the_head() -> None:
    model = tiny_model()
    tokens = tokens_of([20])
    x_TSD = model.hidden(tokens, model.pack([20]))
    ahead_TSD = model.mtp_hidden(x_TSD[:-1], tokens[1:], model.pack([19]))

    def moved(parameter: Tensor) -> tuple[bool, bool]:
        """Whether a change of `parameter` changes the logits, the prediction's logits."""
        before = model.logits(x_TSD), model.mtp_logits(ahead_TSD)
        parameter.add_(torch.randn_like(parameter) * 0.5)
        after = model.logits(x_TSD), model.mtp_logits(ahead_TSD)
        return tuple(not torch.equal(a, b) for a, b in zip(before, after, strict=True))  # type: ignore[return-value]

    mtp = model.mtp[0]
    for name in ("hc_head_fn", "hc_head_base", "hc_head_scale", "norm.weight"):
        assert moved(mtp.get_parameter(name)) == (False, True), name
        assert moved(model.get_parameter(name)) == (True, False), name
    assert moved(model.head.weight) == (True, True)


@torch.no_grad()
def test_prediction_joins_the_next_token_and_each_stream() -> None:
    model = tiny_model()
    mtp = model.mtp[0]
    seen: list[Tensor] = []
    mtp.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    tokens = tokens_of([12])
    x_TSD = model.hidden(tokens, model.pack([12]))[:-1]
    model.mtp_hidden(x_TSD, tokens[1:], model.pack([11]))

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    own = norm(model.embed(tokens[1:]), mtp.enorm.weight) @ mtp.e_proj.weight.T
    for s in range(model.config.hc_mult):
        wanted = own + norm(x_TSD[:, s], mtp.hnorm.weight) @ mtp.h_proj.weight.T
        torch.testing.assert_close(seen[0][:, s], wanted, atol=1e-5, rtol=0)


def test_the_streams_start_as_copies_of_the_embedding() -> None:
    model = tiny_model()
    seen: list[Tensor] = []
    model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    tokens = tokens_of([7])
    model.hidden(tokens, model.pack([7]))
    for s in range(model.config.hc_mult):
        assert torch.equal(seen[0][:, s], model.embed(tokens))


@torch.no_grad()
def run(numerics: Numerics) -> tuple[Tensor, Tensor]:
    model = tiny_model(numerics=numerics)
    tokens = torch.randint(0, 97, (sum(LENGTHS),), generator=torch.Generator().manual_seed(3))
    x_TSD = model.hidden(tokens, model.pack(LENGTHS))
    return x_TSD, model.logits(x_TSD)


def test_low_precision_is_close_to_fp32_and_logits_are_always_fp32() -> None:
    _, exact = run(FP32)
    sizes = {}
    for name, numerics in (("bf16", BF16), ("release", RELEASE)):
        x_TSD, logits = run(numerics)
        assert x_TSD.dtype == torch.bfloat16
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()
        # the median row: a row may differ more where another expert or entry was chosen
        sizes[name] = float(((logits - exact).norm(dim=1) / exact.norm(dim=1)).median())
    assert 0 < sizes["bf16"] < 0.05
    assert sizes["bf16"] < sizes["release"] < 0.3


def test_a_training_step_leaves_no_graph_behind() -> None:
    model = tiny_model().train()
    tokens = tokens_of([150])

    def step(mark: Callable[[Tensor], Tensor]) -> None:
        hook = model.embed.register_forward_hook(lambda module, args, out: mark(out))
        x_TSD = model.hidden(tokens, model.pack([150]))
        ahead_TSD = model.mtp_hidden(x_TSD[:-1], tokens[1:], model.pack([149]))
        (model.logits(x_TSD).square().mean() + model.mtp_logits(ahead_TSD).square().mean()).backward()
        hook.remove()

    assert graph_is_freed(step)


def test_every_parameter_learns_but_the_routing_bias_and_the_indexer() -> None:
    """The indexer chooses; the choice has no gradient, and its training loss is its own."""
    model = tiny_model().train()
    tokens = tokens_of([150])
    x_TSD = model.hidden(tokens, model.pack([150]))
    ahead_TSD = model.mtp_hidden(x_TSD[:-1], tokens[1:], model.pack([149]))
    (model.logits(x_TSD).square().sum() + model.mtp_logits(ahead_TSD).square().sum()).backward()
    for name, parameter in model.named_parameters():
        still = ".indexer." in name or name.endswith("gate.bias")
        moved = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        assert moved is not still, name
