"""Folders as people have them: each kind loads and computes the same, or is refused by name; check agrees."""

import json
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsv4.checkpoint import (
    BASE,
    RELEASE,
    CheckpointReader,
    check_folder,
    convert,
    open_folder,
    save_checkpoint,
)
from dsv4.config import Mode, ModelConfig
from dsv4.kernels.quant import dequantize_fp8_weight, e8m0_to_float, fp4_to_fp8_weight
from tests.checkpoint.folders import Tensors, edit_config, refused, rewrite, state


def _fp8_experts(tensors: Tensors) -> None:
    for e in range(4):
        for w in "123":
            name = f"layers.2.ffn.experts.{e}.w{w}"
            weight, scale = fp4_to_fp8_weight(tensors[f"{name}.weight"], tensors[f"{name}.scale"])
            tensors |= {f"{name}.weight": weight, f"{name}.scale": scale}


def _one_bf16(tensors: Tensors) -> None:
    name = "layers.1.attn.wq_a"
    tensors[f"{name}.weight"] = dequantize_fp8_weight(
        tensors[f"{name}.weight"], tensors.pop(f"{name}.scale"), torch.bfloat16
    )


def _scales(change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], None]:
    def run(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith(".scale")]:
            tensors[name] = change(tensors[name])

    return run


def _codes(kind: torch.dtype) -> Callable[[Tensors], None]:
    def run(tensors: Tensors) -> None:
        for name, tensor in list(tensors.items()):
            if tensor.dtype in (torch.float8_e4m3fn, torch.int8):
                tensors[name] = tensor.view(kind)

    return run


def _floats(kind: torch.dtype, ending: str) -> Callable[[Tensors], None]:
    def run(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith(ending)]:
            tensors[name] = tensors[name].to(torch.bfloat16).to(kind)

    return run


def _narrow_tables(tensors: Tensors) -> None:
    for name in [name for name in tensors if name.endswith("tid2eid")]:
        tensors[name] = tensors[name].to(torch.int32)


SAME = {
    "FP8 experts among FP4 ones": _fp8_experts,
    "one bf16 linear": _one_bf16,
    "float32 scales": _scales(e8m0_to_float),
    "bfloat16 scales": _scales(lambda scale: e8m0_to_float(scale).to(torch.bfloat16)),
    "byte scales": _scales(lambda scale: scale.view(torch.uint8)),
    "signed byte scales": _scales(lambda scale: scale.view(torch.int8)),
    "codes as U8": _codes(torch.uint8),
    "codes as I8": _codes(torch.int8),
    "float32 norms": _floats(torch.float32, "norm.weight"),
    "float16 norms": _floats(torch.float32, "norm.weight"),
    "int32 tables": _narrow_tables,
}


@pytest.mark.parametrize("name", SAME)
def test_other_spellings_of_the_same_numbers(save, name: str) -> None:
    right = save("release", "right")
    other = rewrite(save("release", "other"), SAME[name])
    wanted, got = state(right), state(other)
    assert list(wanted) == list(got)
    assert all(torch.equal(wanted[key], got[key]) for key in wanted)
    state(other, "release")
    report = check_folder(other)
    assert report.ok, report.problems
    assert report.layout in ("release", "release_fp8", "base")


@pytest.mark.parametrize("layout", ["bf16", "release"])
def test_scales_that_are_no_powers_of_two_are_refused_only_where_products_need_e8m0(save, layout: str) -> None:
    def change(tensors: Tensors) -> None:
        name = "layers.1.ffn.experts.0.w1.scale"
        tensors[name] = e8m0_to_float(tensors[name]) * 1.5

    folder = rewrite(save("release"), change)
    if layout == "release":
        with pytest.raises(ValueError, match=r"w1\.scale': scale must hold powers of two"):
            state(folder, "release")
    else:
        state(folder, "bf16")


def module_names(tensors: Tensors) -> Tensors:
    """Released names and single experts as transformers' own modules have them."""
    words = (
        ("embed.", "model.embed_tokens."), ("head.", "lm_head."), ("hc_head_", "model.hc_head.hc_"),
        ("norm.", "model.norm."), ("layers.", "model.layers."),
    )  # fmt: skip
    inner = (
        (".scale", ".weight_scale_inv"),
        (".indexer.weights_proj.", ".compressor.indexer.scorer.weights_proj."),
        (".indexer.compressor.norm.", ".compressor.indexer.kv_norm."),
        (".indexer.compressor.", ".compressor.indexer."),
        (".indexer.wq_b.", ".compressor.indexer.q_b_proj."),
        (".compressor.norm.", ".compressor.kv_norm."),
        (".attn_norm.", ".input_layernorm."), (".ffn_norm.", ".post_attention_layernorm."),
        (".hc_attn_", ".attn_hc."), (".hc_ffn_", ".ffn_hc."), (".attn_sink", ".sinks"), (".ape", ".position_bias"),
        (".wq_a.", ".q_a_proj."), (".wq_b.", ".q_b_proj."), (".wkv.", ".kv_proj."), (".wgate.", ".gate_proj."),
        (".wo_a.", ".o_a_proj."), (".wo_b.", ".o_b_proj."), (".q_norm.", ".q_a_norm."),
        (".gate.bias", ".gate.e_score_correction_bias"), (".attn.", ".self_attn."), (".ffn.", ".mlp."),
        ("shared_experts.w1.", "shared_experts.gate_proj."), ("shared_experts.w2.", "shared_experts.down_proj."),
        ("shared_experts.w3.", "shared_experts.up_proj."),
    )  # fmt: skip
    out: Tensors = {}
    for name, tensor in tensors.items():
        new = next((theirs + name.removeprefix(ours) for ours, theirs in words if name.startswith(ours)), name)
        for ours, theirs in inner:
            new = new.replace(ours, theirs)
        out[new] = tensor
    for layer in range(4):
        prefix = f"model.layers.{layer}.mlp.experts."
        for kind, suffix in (("weight", ""), ("weight_scale_inv", "_scale_inv")):
            if f"{prefix}0.w1.{kind}" not in out:
                continue
            both = [[out.pop(f"{prefix}{e}.w{w}.{kind}") for w in "13"] for e in range(4)]
            if both[0][0].dtype == torch.float8_e8m0fnu:
                both = [[tensor.view(torch.uint8) for tensor in pair] for pair in both]
            down = [out.pop(f"{prefix}{e}.w2.{kind}").view(both[0][0].dtype) for e in range(4)]
            out[f"{prefix}gate_up_proj{suffix}"] = torch.stack([torch.cat(pair) for pair in both])
            out[f"{prefix}down_proj{suffix}"] = torch.stack(down)
    return out


@pytest.mark.parametrize("layout", ["bf16", "release"])
def test_module_names_of_transformers_with_all_experts_in_one_tensor(save, layout: str) -> None:
    def change(tensors: Tensors) -> None:
        renamed = module_names(tensors)
        tensors.clear()
        tensors.update(renamed)

    right, other = save(layout, "right"), rewrite(save(layout, "other"), change)
    assert "model.layers.0.mlp.experts.gate_up_proj" in load_file(other / "model.safetensors")
    wanted, got = state(right, "release"), state(other, "release")
    assert wanted.keys() == got.keys()
    for name in wanted:
        assert wanted[name].dtype == got[name].dtype
        assert torch.equal(wanted[name].float(), got[name].float()), name
    assert check_folder(other).ok
    assert check_folder(other).layout == layout


def test_two_spellings_of_one_tensor_are_refused(save) -> None:
    def change(tensors: Tensors) -> None:
        tensors["model.norm.weight"] = tensors["norm.weight"].clone()

    assert "'norm.weight' is there in two spellings" in refused(rewrite(save("bf16"), change))


def test_a_folder_saved_by_transformers_gives_its_logits(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import dsv4
    from dsv4.testing.tiny import tiny_config

    raw = tiny_config(index_n_heads=32, sliding_window=16, max_position_embeddings=4096).to_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        theirs = transformers.DeepseekV4ForCausalLM(transformers.DeepseekV4Config(**raw)).float().eval()
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter += torch.randn_like(parameter) * 0.02
        ids = list(range(2, 90))
        with torch.no_grad():
            expected = theirs(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        for original in (True, False):
            folder = tmp_path / f"saved-{original}"
            theirs.save_pretrained(folder, save_original_format=original)
            assert "compress_ratios" not in json.loads((folder / "config.json").read_text())
            ours = dsv4.load(folder, "fp32", context_length=512, memory=64 << 20).logits(ids)
            assert float((ours - expected).abs().max()) < 2e-5
            assert check_folder(folder).ok
        convert(tmp_path / "saved-True", tmp_path / "out", dtype="fp32")
    assert CheckpointReader(tmp_path / "out").spec("embed.weight").shape == (97, 64)


def _drop_prediction(tensors: Tensors) -> None:
    for name in [name for name in tensors if name.startswith("mtp.")]:
        del tensors[name]


@pytest.mark.parametrize(
    ("stored", "changes"),
    [
        (False, {}),
        (False, {"num_nextn_predict_layers": 0}),
        (True, {"num_nextn_predict_layers": 0, "compress_ratios": [0, 4, 128, 4]}),
        (False, {"num_nextn_predict_layers": 0, "compress_ratios": [0, 4, 128, 4]}),
        (False, {"num_nextn_predict_layers": None, "compress_ratios": [0, 4, 128, 4]}),
    ],
)
def test_without_the_prediction_block(save, tmp_path: Path, stored: bool, changes: dict[str, Any]) -> None:
    folder = edit_config(save("release"), **changes)
    if not stored:
        rewrite(folder, _drop_prediction)
    got = state(folder)
    assert got
    assert not any(name.startswith("mtp.") for name in got)
    report = check_folder(folder)
    assert report.ok
    assert report.notes == () or "mtp.*" in report.notes[0]
    convert(folder, tmp_path / "out", dtype="bf16")
    assert check_folder(tmp_path / "out").notes == ()


def test_half_a_prediction_block_is_refused(save) -> None:
    assert "'mtp.0.enorm.weight' is missing" in refused(rewrite(save("bf16"), lambda t: t.pop("mtp.0.enorm.weight")))


def test_draft_stages_under_a_config_that_does_not_say_so(save) -> None:
    def change(tensors: Tensors) -> None:
        _drop_prediction(tensors)
        tensors["mtp.0.main_proj.weight"] = torch.ones(4, 4)

    folder = rewrite(save("release"), change)
    assert open_folder(folder).config.num_nextn_predict_layers == 0
    assert "DSpark" in open_folder(folder).notes[0]


def poison(folder: Path, name: str, byte: int) -> Path:
    """One byte of a tensor's data replaced."""
    file = CheckpointReader(folder).file_of(name)
    data = bytearray(file.read_bytes())
    size = struct.unpack("<Q", data[:8])[0]
    begin, end = json.loads(data[8 : 8 + size])[name]["data_offsets"]
    data[8 + size + end - 1 if byte == 0x7F else 8 + size + begin] = byte
    file.write_bytes(data)
    return folder


@pytest.mark.parametrize("mode", ["fp32", "bf16", "release"])
@pytest.mark.parametrize(
    ("layout", "name", "byte", "what"),
    [
        ("release", "layers.1.attn.wq_a.scale", 255, "e8m0 code 255"),
        ("release", "layers.1.ffn.experts.3.w2.scale", 255, "e8m0 code 255"),
        ("release", "mtp.0.e_proj.scale", 255, "e8m0 code 255"),
        ("release", "layers.1.attn.wq_a.weight", 0x7F, "e4m3 code"),
        ("release", "layers.2.attn.wo_a.weight", 255, "e4m3 code"),
        ("release_fp8", "layers.1.ffn.experts.3.w2.weight", 0x7F, "e4m3 code"),
        ("base", "layers.1.attn.wq_a.scale", 0x7F, None),
        ("bf16", "layers.0.attn_norm.weight", 0x7F, None),
        ("bf16", "layers.1.attn.wkv.weight", 0x7F, None),
    ],
)
def test_what_is_no_number_is_refused_by_name(
    save, mode: Mode, layout: str, name: str, byte: int, what: str | None
) -> None:
    folder = poison(save(layout), name, byte)
    if what is None:  # the last byte of 0x7f is a huge number, the one before makes it NaN or infinity
        file = CheckpointReader(folder).file_of(name)
        tensors = load_file(file)
        tensors[name].view(-1)[-1] = float("nan") if mode == "fp32" else float("inf")
        save_file(tensors, file)
    with pytest.raises(ValueError, match=rf"{name}' holds {'NaN' if what else 'NaN or infinity'}"):
        state(folder, mode)
    for deep in (False, True):
        problems = check_folder(folder, deep=deep).problems
        assert len(problems) == 1
        assert name in problems[0]
        assert what is None or what in problems[0]


@pytest.mark.parametrize("name", ["norm.weight", "layers.0.attn.attn_sink", "layers.1.ffn.gate.bias", "hc_head_fn"])
def test_large_folders_are_looked_at_where_it_is_cheap(save, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("dsv4.checkpoint.values.WHOLE_BYTES", 0)

    def change(tensors: Tensors) -> None:
        tensors[name].view(-1)[0] = float("nan")
        tensors["embed.weight"].view(-1)[5] = float("inf")

    folder = rewrite(save("release"), change)
    with pytest.raises(ValueError, match=f"'{name}' holds NaN"):
        state(folder, "release")
    assert len(check_folder(folder).problems) == 1
    seen: list[int] = []
    report = check_folder(folder, deep=True, progress=lambda done, total, _: seen.append(total - done))
    assert len(report.problems) == 2
    assert any("'embed.weight' holds NaN or infinity at [0, 5]" in problem for problem in report.problems)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == 0


def test_an_odd_width_stored_as_fp8_by_others_still_loads(tmp_path: Path) -> None:
    from dsv4.kernels.quant import quantize_fp8_weight
    from dsv4.testing.tiny import tiny_config, tiny_model

    config = tiny_config(hidden_size=192, moe_intermediate_size=192)
    save_checkpoint(tmp_path / "m", config, tiny_model(config).state_dict(), RELEASE)
    assert ModelConfig.from_file(tmp_path / "m").quantized
    name = "layers.1.attn.wq_a.weight"
    assert CheckpointReader(tmp_path / "m").spec(name).dtype == torch.bfloat16
    before = state(tmp_path / "m")[name]

    def change(tensors: Tensors) -> None:
        tensors[name], tensors[name.replace("weight", "scale")] = quantize_fp8_weight(tensors[name].float())

    after = state(rewrite(tmp_path / "m", change), "fp32")[name]
    assert float((after - before).abs().max()) < 0.1
    assert check_folder(tmp_path / "m").ok
    save_checkpoint(tmp_path / "base", config, tiny_model(config).state_dict(), BASE)
    assert check_folder(tmp_path / "base").layout == "base"
