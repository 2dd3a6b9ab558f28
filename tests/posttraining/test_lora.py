"""Adapters: they learn alone, over weights as they are stored; on disk in PEFT's layout; merged they say the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import dsv4
from dsv4.checkpoint import BF16, FP32, RELEASE, CheckpointError, CheckpointReader, check_folder, convert
from dsv4.checkpoint.adapter import CONFIG_NAME, WEIGHTS_NAME, adaptable, read_adapter, write_adapter
from dsv4.checkpoint.names import Layout
from dsv4.checkpoint.spellings import released_name, transformers_name
from dsv4.config import ModelConfig
from dsv4.model.layers import GroupedLinear, Linear
from dsv4.model.lora import LowRankAdapter, adapters_of, attach_adapter, merge_adapters
from dsv4.model.transformer import Transformer
from dsv4.posttraining.base_model import BaseModel
from dsv4.posttraining.lora import adapted, target_layers
from dsv4.training.batch import Batch
from dsv4.training.logbook import read_log
from dsv4.training.loss import compute_loss
from dsv4.training.settings import LoraSettings, LossWeights
from dsv4.training.states import find_state, load_state
from tests.cli.test_sft import run, write_base, write_talks

ALL = ("attn.*", "attn.indexer.wq_b", "shared_experts.*", "experts.*.w*")


def filled(model: Transformer, size: float = 0.05) -> Transformer:
    """Adapters that do something."""
    generator = torch.Generator().manual_seed(1)
    for adapter in adapters_of(model).values():
        adapter.up.data = torch.randn(adapter.up.shape, generator=generator) * size
    return model


def tokens(model: Transformer, count: int = 60) -> torch.Tensor:
    return torch.randint(5, model.config.vocab_size, (count,), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def logits(model: Transformer) -> torch.Tensor:
    return model.logits(model.hidden(tokens(model), model.pack([40, 20])))


def write(base: Path, place: Path, targets: tuple[str, ...] = ALL, *, stored: bool = False) -> Transformer:
    """A model with adapters that do something, and the adapter's folder."""
    opened = BaseModel.open(base)
    model = filled(adapted(opened, LoraSettings(rank=3, alpha=6.0, targets=targets), 4, stored=stored))
    write_adapter(place, adapters_of(model), str(base), 6.0)
    return model


def test_targets_are_ends_of_released_names(tmp_path: Path) -> None:
    config = BaseModel.open(write_base(tmp_path / "base")).config
    default = target_layers(config, LoraSettings().targets)
    assert default == [f"layers.{i}.attn.{name}" for i in range(3) for name in ("wq_a", "wq_b", "wkv", "wo_b")]
    assert target_layers(config, ("wq_b",)) == [
        "layers.0.attn.wq_b",
        "layers.1.attn.wq_b",
        "layers.1.attn.indexer.wq_b",
        "layers.2.attn.wq_b",
    ]
    assert len(target_layers(config, ("experts.*.w1",))) == 3 * config.n_routed_experts
    for wrong in ("q_proj", "gate", "head", "compressor.wkv", "mtp.0.attn.wq_a"):
        with pytest.raises(ValueError, match=r"lora.targets: no layer is called .*; there are attn.indexer.wq_b, "):
            target_layers(config, (wrong,))


def test_every_layer_has_a_name_that_is_read_back(tmp_path: Path) -> None:
    config = BaseModel.open(write_base(tmp_path / "base")).config
    for layer in adaptable(config):
        assert released_name(transformers_name(layer) + ".weight") == layer + ".weight"


@pytest.mark.parametrize("layout", [FP32, RELEASE], ids=lambda layout: layout.name)
def test_a_new_adapter_changes_nothing_and_trains_alone(tmp_path: Path, layout: Layout) -> None:
    base = BaseModel.open(write_base(tmp_path / "base", layout))
    stored = layout is RELEASE
    plain = dsv4.load(base.folder, "release" if stored else "fp32", context_length=128, sequences=1).model
    model = adapted(base, LoraSettings(rank=2, targets=ALL), 0, stored=stored)
    assert torch.equal(logits(model), logits(plain))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    filled(model)
    compute_loss(model, Batch(tokens(model), (40, 20), torch.ones(60))).total.backward()
    asked = {name for name, p in model.named_parameters() if p.grad is not None}
    assert asked
    assert all(".adapter." in name for name in asked)
    for layer in ("layers.0.attn.wq_a", "layers.1.attn.wo_a", "layers.2.ffn.shared_experts.w2"):
        assert {f"{layer}.adapter.down", f"{layer}.adapter.up"} <= asked
    for name, value in model.state_dict().items():
        if ".adapter." not in name:
            assert torch.equal(value.view(torch.uint8), before[name].view(torch.uint8)), name
            assert value.dtype == before[name].dtype
    if stored:
        assert model.get_parameter("layers.0.attn.wq_a.weight").dtype == torch.float8_e4m3fn
        assert model.get_parameter("layers.0.ffn.experts.0.w1.weight").dtype == torch.int8


def test_the_gradient_is_the_slope(tmp_path: Path) -> None:
    base = BaseModel.open(write_base(tmp_path / "base"))
    model = filled(adapted(base, LoraSettings(rank=2, targets=("attn.wo_a", "attn.wq_b")), 0, stored=False))
    batch = Batch(tokens(model), (40, 20), torch.ones(60))
    weights = LossWeights(0.0, 0.0, 0.0)
    compute_loss(model, batch, weights=weights).total.backward()
    for layer in ("layers.0.attn.wo_a", "layers.2.attn.wq_b"):
        adapter = adapters_of(model)[layer]
        for matrix in (adapter.down, adapter.up):
            assert matrix.grad is not None
            direction = matrix.grad / matrix.grad.norm()
            with torch.no_grad():
                values = []
                for step in (1e-3, -2e-3):
                    matrix += step * direction
                    values.append(float(compute_loss(model, batch, weights=weights).total))
                matrix += 1e-3 * direction
            slope = (values[0] - values[1]) / 2e-3
            assert slope == pytest.approx(float(matrix.grad.norm()), rel=0.05)


def test_an_adapter_over_quantised_weights_has_the_gradient_of_their_values() -> None:
    """A product with a stored FP8 or FP4 weight passes the gradient of the weight that it stands for."""
    from dsv4.kernels.matmul import linear
    from dsv4.kernels.quant import (
        dequantize_fp4_weight,
        dequantize_fp8_weight,
        quantize_fp4_weight,
        quantize_fp8_weight,
    )

    value, x = torch.randn(40, 64), torch.randn(6, 64)
    for quantise, dequantise in (
        (quantize_fp8_weight, dequantize_fp8_weight),
        (quantize_fp4_weight, dequantize_fp4_weight),
    ):
        weight, scale = quantise(value)
        wanted = torch.ones(6, 40) @ dequantise(weight, scale, torch.float32)
        for impl in (None, "reference"):
            for casts in (True, False):
                own = x.clone().requires_grad_()
                linear(own, weight, scale, quantize_activations=casts, impl=impl).sum().backward()
                assert own.grad is not None
                torch.testing.assert_close(own.grad, wanted)


def test_merged_is_applied(tmp_path: Path) -> None:
    base, place = write_base(tmp_path / "base"), tmp_path / "adapter"
    beside = logits(write(base, place))
    model = dsv4.load(base, "fp32", adapter=place, context_length=128, sequences=1)
    assert not adapters_of(model.model)  # float weights: added to them
    torch.testing.assert_close(logits(model.model), beside, rtol=1e-4, atol=1e-5)
    convert(base, tmp_path / "merged", dtype="fp32", adapter=place)
    merged = dsv4.load(tmp_path / "merged", "fp32", context_length=128, sequences=1)
    assert torch.equal(logits(merged.model), logits(model.model))
    plain = dsv4.load(base, "fp32", context_length=128, sequences=1)
    assert float((logits(plain.model) - beside).abs().max()) > 0.01


def test_over_quantised_weights_the_adapter_stays_beside_and_no_step_ignores_it(tmp_path: Path) -> None:
    base, place = write_base(tmp_path / "base", RELEASE), tmp_path / "adapter"
    beside = logits(write(base, place, stored=True))
    model = dsv4.load(base, "release", adapter=place, context_length=128, sequences=1)
    assert "layers.0.attn.wq_a" in adapters_of(model.model)
    torch.testing.assert_close(logits(model.model).float(), beside.float(), rtol=0.05, atol=0.05)
    assert "has an adapter" in model.memory_text() or "adapter" in model.memory_text()
    with pytest.raises(ValueError, match="adapter"):
        dsv4.load(base, "release", adapter=place, fused=True, context_length=128, sequences=1)
    # what the engine says is what the model says
    prompt = tokens(model.model, 30).tolist()
    said = model.generate(prompt, max_tokens=1, temperature=0, logprobs=True)
    with torch.no_grad():
        best = int(model.model.logits(model.model.hidden(torch.tensor(prompt), model.model.pack([30])))[-1].argmax())
    assert said == model.tokenizer.decode([best])


def test_merging_into_a_released_layout_quantises_once(tmp_path: Path) -> None:
    base, place = write_base(tmp_path / "base", RELEASE), tmp_path / "adapter"
    write(base, place, ("attn.wq_b",), stored=True)
    convert(base, tmp_path / "merged", adapter=place)
    assert check_folder(tmp_path / "merged", deep=True).ok
    old, new = CheckpointReader(base), CheckpointReader(tmp_path / "merged")
    adapter = read_adapter(place, BaseModel.open(base).config)
    for name in old.names():
        layer = name.removesuffix(".weight")
        if layer in adapter.factors:
            change = new.dequantized(name) - old.dequantized(name)
            assert torch.corrcoef(torch.stack([change.flatten(), adapter.layer(layer).change().flatten()]))[0, 1] > 0.9
        elif not any(name.startswith(layer) for layer in adapter.factors):
            assert torch.equal(old.tensor(name).view(torch.uint8), new.tensor(name).view(torch.uint8)), name


def test_the_layout_is_pefts(tmp_path: Path) -> None:
    base, place = write_base(tmp_path / "base"), tmp_path / "adapter"
    model = write(base, place, ("attn.wq_a", "shared_experts.w2"))
    stored, config = load_file(place / WEIGHTS_NAME), json.loads((place / CONFIG_NAME).read_text())
    prefix = "base_model.model.model.layers.1."
    down = stored[prefix + "self_attn.q_a_proj.lora_A.weight"]
    up = stored[prefix + "self_attn.q_a_proj.lora_B.weight"]
    layer = adapters_of(model)["layers.1.attn.wq_a"]
    assert torch.equal(down, layer.down)
    assert torch.equal(up, layer.up)
    assert prefix + "mlp.shared_experts.down_proj.lora_A.weight" in stored
    assert len(stored) == 2 * 3 * 2
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["bias"]) == ("LORA", 3, 6.0, "none")
    assert "model.layers.1.self_attn.q_a_proj" in config["target_modules"]


def broken(place: Path, **changes: Any) -> None:
    file = place / CONFIG_NAME
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type must be LORA, got 'IA3'"),
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["head"]}, "modules_to_save is"),
        ({"rank_pattern": {"x": 4}}, "rank_pattern is"),
        ({"r": 8}, r"tensor 'base_model.model.model.layers.0.self_attn.kv_proj.lora_A.weight' should be F32 \[8, 32\]"),
        ({"r": 0}, "r must be an integer of at least 1, got 0"),
        ({"lora_alpha": "big"}, "lora_alpha must be a finite number"),
    ],
)
def test_other_adapters_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    base, place = write_base(tmp_path / "base"), tmp_path / "adapter"
    write(base, place, ("attn.wkv",))
    broken(place, **change)
    with pytest.raises(CheckpointError, match=message):
        dsv4.load(base, adapter=place, context_length=64, sequences=1)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    base, place = write_base(tmp_path / "base"), tmp_path / "adapter"
    write(base, place, ("attn.wkv",))
    config, whole = BaseModel.open(base).config, load_file(place / WEIGHTS_NAME)
    first = "base_model.model.model.layers.0.self_attn.kv_proj.lora_A.weight"

    def refused(tensors: dict[str, torch.Tensor], message: str) -> None:
        save_file(tensors, place / WEIGHTS_NAME)
        with pytest.raises(CheckpointError, match=message):
            read_adapter(place, config)

    refused(
        {**whole, first: torch.zeros(3, 7)}, rf"tensor '{first}' should be F32 \[3, 32\] \(rank 3\), is F32 \[3, 7\]"
    )
    refused({k: v for k, v in whole.items() if k != first}, r"layers.0.attn.wkv has no tensor \*.lora_A.weight")
    refused(
        {**whole, first.replace("kv_proj", "v_proj"): whole[first].clone()}, "the model has no linear layer .*v_proj"
    )
    refused(
        {**whole, first.replace("layers.0", "layers.9"): whole[first].clone()}, "no linear layer 'layers.9.attn.wkv'"
    )
    refused({**whole, "extra": whole[first].clone()}, "tensor 'extra': expected a name that ends in .lora_A.weight")
    refused({**whole, first: torch.full((3, 32), float("nan"))}, "holds NaN or infinity")
    with pytest.raises(FileNotFoundError, match=r"no adapter: there is no adapter_config.json"):
        read_adapter(base, config)


def test_names_of_the_release_are_read_too(tmp_path: Path) -> None:
    base, place = write_base(tmp_path / "base"), tmp_path / "adapter"
    write(base, place, ("attn.wkv",))
    released = {
        name.replace("model.model.model.", "model.model.").replace("self_attn.kv_proj", "attn.wkv"): tensor
        for name, tensor in load_file(place / WEIGHTS_NAME).items()
    }
    save_file(released, place / WEIGHTS_NAME)
    assert list(read_adapter(place, BaseModel.open(base).config).factors) == [f"layers.{i}.attn.wkv" for i in range(3)]


def test_a_grouped_linear_adds_what_merging_adds() -> None:
    layer = GroupedLinear(2, 12, 5)
    layer.weight.data.normal_()
    adapter = LowRankAdapter(12, 10, 3, 0.5)
    adapter.draw(torch.Generator().manual_seed(0))
    adapter.up.data.normal_()
    model = torch.nn.ModuleDict({"a": layer})
    attach_adapter(model, "a", adapter)
    x = torch.randn(7, 2, 12)
    beside = layer(x)
    merge_adapters(model)
    assert layer.adapter is None
    torch.testing.assert_close(layer(x), beside)


def test_adapters_of_other_sizes_or_places_are_refused() -> None:
    model = torch.nn.ModuleDict({"a": Linear(4, 6), "n": torch.nn.LayerNorm(4)})
    with pytest.raises(ValueError, match="a: an adapter of 4 -> 5 on a layer of 4 -> 6"):
        attach_adapter(model, "a", LowRankAdapter(4, 5, 2, 1.0))
    with pytest.raises(ValueError, match="the model has no layer 'b'"):
        attach_adapter(model, "b", LowRankAdapter(4, 6, 2, 1.0))
    with pytest.raises(ValueError, match="n: adapters lie on linear layers, not on a LayerNorm"):
        attach_adapter(model, "n", LowRankAdapter(4, 6, 2, 1.0))


@pytest.mark.parametrize("layout", [RELEASE, BF16], ids=lambda layout: layout.name)
def test_a_run_over_stored_weights_learns_and_resumes_bit_for_bit(tmp_path: Path, layout: Layout) -> None:
    base, data = write_base(tmp_path / "base", layout), write_talks(tmp_path / "talks.jsonl")
    common = ("--init", base, "--data", data, "--lora", "4", "--epochs", "4", "--lr", "1e-2")
    run(*common, "--folder", tmp_path / "whole")
    lines = list(read_log(tmp_path / "whole" / "log.jsonl"))
    assert sum(line["next"] for line in lines[-4:]) < 0.8 * sum(line["next"] for line in lines[:4])
    run(*common, "--folder", tmp_path / "parts", "--steps", "3")
    state = load_state(find_state(tmp_path / "parts") or Path())
    assert all(".adapter." in name for name in state["model"])  # the base is not written again and again
    assert "masters" not in state
    run(*common, "--folder", tmp_path / "parts")
    one, two = (load_file(tmp_path / name / "adapter" / WEIGHTS_NAME) for name in ("whole", "parts"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    config = ModelConfig.from_file(base)
    assert len(read_adapter(tmp_path / "whole" / "adapter", config).factors) == 12
    model = dsv4.load(base, "release", adapter=tmp_path / "whole" / "adapter", context_length=64, sequences=1)
    assert model.chat([{"role": "user", "content": "say red 1"}], thinking=False, max_tokens=4)
    other = (*common[:4], "--lora", "5", *common[6:])
    with pytest.raises(ValueError, match=r"lora.rank differs"):
        run(*other, "--folder", tmp_path / "parts")


def test_what_does_not_go_together_with_adapters(tmp_path: Path) -> None:
    base, data = write_base(tmp_path / "base"), write_talks(tmp_path / "talks.jsonl")
    common = ("--init", base, "--data", data, "--lora", "4", "--folder", tmp_path / "run")
    for extra, message in (
        (("--export", "bf16"), "--export: with LoRA the run writes an adapter"),
        (("--set", "qat_from=0"), "qat_from: the weights under lora are not changed"),
        (("--set", "optimizer.balance_speed=0.1"), "optimizer.balance_speed must be 0 with lora"),
        (("--set", 'lora.targets=["q_proj"]'), "no layer is called 'q_proj'"),
    ):
        with pytest.raises(ValueError, match=message):
            run(*common, *extra)
