"""Weights in the forms of other quantisers: read as their own libraries read them, refused by a load, converted."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsv4.checkpoint import CheckpointError, CheckpointReader, check_folder, convert
from dsv4.checkpoint.requantized import METHODS
from dsv4.checkpoint.requantized.packed_integers import unpack
from dsv4.kernels.quant import quantize_fp4_weight, quantize_fp8_weight
from tests.checkpoint.folders import Tensors, edit_config, refused, rewrite, state
from tests.conftest import GOLDEN

RECORDED = sorted((GOLDEN / "requantized").glob("*.safetensors"))
SAME = {"mxfp4": "mxfp4", "fp8_blocks": "fp8"}  # the release's own numbers under other names


def reader_of(tmp_path: Path, parts: Tensors) -> CheckpointReader:
    save_file({f"layers.0.x.{word}": part for word, part in parts.items()}, tmp_path / "model.safetensors")
    return CheckpointReader(tmp_path)


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_values_are_those_of_the_library_that_wrote_them(tmp_path: Path, file: Path) -> None:
    parts = load_file(file)
    values = parts.pop("values")
    reader = reader_of(tmp_path, parts)
    if file.stem in SAME:
        assert not reader.packed
        got = reader.dequantized("layers.0.x.weight")
    else:
        got = reader.unpacked("layers.0.x.weight", tuple(values.shape))
    assert got.dtype == torch.float32
    assert torch.equal(got.to(values.dtype), values)


def test_every_form_is_recorded() -> None:
    words = [frozenset(load_file(file)) - {"values"} for file in RECORDED]
    assert all(any(method.reads(found) for found in words) for method in METHODS)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_columns_lie_in_words_from_the_lowest_bits_up(bits: int) -> None:
    numbers = torch.randint(0, 1 << bits, (3, 64), dtype=torch.int64)
    words = torch.zeros(3, 64 * bits // 32, dtype=torch.int64)
    for column in range(64):
        words[:, column * bits // 32] |= numbers[:, column] << (column * bits % 32)
    packed = torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
    assert torch.equal(unpack(packed, bits, 64).to(torch.int64), numbers)


def test_columns_in_the_order_of_their_groups(tmp_path: Path) -> None:
    parts = load_file(GOLDEN / "requantized" / "w4a16.safetensors")
    values = parts.pop("values")
    order = torch.randperm(values.shape[1])
    codes = unpack(parts["weight_packed"], 4, values.shape[1])[:, order]
    shifts = torch.arange(0, 32, 4)
    words = (codes.to(torch.int64).unflatten(1, (-1, 8)) << shifts).sum(-1)
    parts["weight_packed"] = torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
    parts["weight_g_idx"] = (order // 128).to(torch.int32)
    got = reader_of(tmp_path, parts).unpacked("layers.0.x.weight", tuple(values.shape))
    assert torch.equal(got.to(values.dtype), values[:, order])
    parts["weight_g_idx"][0] = 2
    with pytest.raises(CheckpointError, match=r"layers\.0\.x\.weight.*groups of columns must lie in 0\.\.1"):
        reader_of(tmp_path, parts).unpacked("layers.0.x.weight", tuple(values.shape))


@pytest.mark.parametrize(
    ("form", "word", "change", "message"),
    [
        ("w4a16", "weight_packed", lambda t: t[:, :-3], "columns of 2, 4 or 8 bits"),
        ("w4a16", "weight_scale", lambda t: t[1:], "weight_scale should be BF16"),
        ("w4a16", "weight_shape", lambda t: t + 1, r"weight_shape is \[9, 257\]"),
        ("w4a16_asymmetric", "weight_zero_point", lambda t: t[:, :1], "weight_zero_point should be I32"),
        ("nvfp4_modelopt", "weight_scale", lambda t: t[:, 1:], r"weight_scale should be F8_E4M3 \[8, 16\]"),
        ("nvfp4_modelopt", "weight_scale_2", lambda t: t.repeat(3), "weight_scale_2 should be F32"),
        ("gptq_auto_round", "qweight", lambda t: t[1:], "rows of 2, 4 or 8 bits"),
        ("gptq_auto_round", "scales", lambda t: t.double(), "scales should be F16"),
        ("fp8_rows", "weight_scale", lambda t: t[1:], "weight_scale should be F32"),
    ],
)
def test_parts_that_do_not_fit(
    tmp_path: Path, form: str, word: str, change: Callable[[Tensor], Tensor], message: str
) -> None:
    parts = load_file(GOLDEN / "requantized" / f"{form}.safetensors")
    shape = tuple(parts.pop("values").shape)
    parts[word] = change(parts[word]).contiguous()
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor 'layers\.0\.x\.weight', .*{message}"):
        reader_of(tmp_path, parts).unpacked("layers.0.x.weight", shape)


def test_parts_of_no_known_form_are_named(tmp_path: Path) -> None:
    parts = load_file(GOLDEN / "requantized" / "nvfp4_modelopt.safetensors")
    del parts["values"], parts["weight"]
    with pytest.raises(CheckpointError, match=r"'layers\.0\.x' is stored as input_scale, weight_scale, weight_scale_2"):
        reader_of(tmp_path, parts)


@pytest.mark.parametrize("form", ["mxfp4", "fp8_blocks", "w4a16"])
def test_a_weight_has_one_scale(tmp_path: Path, form: str) -> None:
    parts = load_file(GOLDEN / "requantized" / f"{form}.safetensors")
    values, scale = parts.pop("values"), parts["weight_scale"]
    if form in SAME:
        reader = reader_of(tmp_path, parts | {"scale": scale.clone()})
        assert torch.equal(reader.dequantized("layers.0.x.weight").to(values.dtype), values)
        assert "layers.0.x.weight_scale" not in reader
    other = scale.view(torch.uint8).clone()
    other.view(-1)[-1] ^= 1
    both = r"'layers\.0\.x\.weight' has 'layers\.0\.x\.scale' and also .*layers\.0\.x\.weight_scale"
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: {both}"):
        reader_of(tmp_path, parts | {"scale": other.view(scale.dtype)})


# One weight [N, K] -> the tensors of a quantiser. The sources are float; quantised ones are multiplied out first.


def nvfp4_modelopt(weight: Tensor) -> Tensors:
    return _nvfp4(weight, ("weight", "weight_scale", "weight_scale_2"), inverse=False) | {
        "input_scale": torch.tensor(1.0)
    }


def nvfp4_compressed_tensors(weight: Tensor) -> Tensors:
    return _nvfp4(weight, ("weight_packed", "weight_scale", "weight_global_scale"), inverse=True)


def _nvfp4(weight: Tensor, names: tuple[str, str, str], *, inverse: bool) -> Tensors:
    blocks = weight.float().unflatten(1, (-1, 16))
    total = weight.abs().max().float() / (6 * 448)
    scale = (blocks.abs().amax(-1) / 6 / total).clamp(2.0**-9, 448).to(torch.float8_e4m3fn)
    grid = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6])
    scaled = (blocks / (scale.float() * total).unsqueeze(-1)).flatten(1)
    codes = (scaled.abs().unsqueeze(-1) - grid).abs().argmin(-1) | ((scaled < 0).long() << 3)
    packed = (codes[:, 0::2] | (codes[:, 1::2] << 4)).to(torch.uint8)
    return dict(
        zip(names, (packed, scale, (1 / total if inverse else total).reshape(1 if inverse else ())), strict=True)
    )


def w4a16(weight: Tensor) -> Tensors:
    N, K = weight.shape
    groups = weight.float().unflatten(1, (-1, 32))
    scale = (groups.abs().amax(-1) / 7.5).to(torch.bfloat16)
    codes = (groups / scale.float().unsqueeze(-1)).round().clamp(-8, 7).flatten(1).long() + 8
    words = (codes.unflatten(1, (-1, 8)) << torch.arange(0, 32, 4)).sum(-1)
    packed = torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
    return {"weight_packed": packed, "weight_scale": scale, "weight_shape": torch.tensor([N, K])}


def gptq(weight: Tensor) -> Tensors:
    parts = w4a16(weight)
    codes = unpack(parts["weight_packed"], 4, weight.shape[1]).T.long()
    words = (codes.unflatten(0, (-1, 8)) << torch.arange(0, 32, 4).view(1, 8, 1)).sum(1)
    packed = torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
    zeros = torch.full((weight.shape[1] // 32, max(1, weight.shape[0] // 8)), 0x77777777, dtype=torch.int32)
    return {"qweight": packed, "scales": parts["weight_scale"].T.contiguous().half(), "qzeros": zeros}


def fp8_rows(weight: Tensor) -> Tensors:
    scale = weight.float().abs().amax(1, keepdim=True) / 448
    return {"weight": (weight.float() / scale).to(torch.float8_e4m3fn), "weight_scale": scale.to(torch.bfloat16)}


def fp8_blocks(weight: Tensor) -> Tensors:
    codes, scale = quantize_fp8_weight(weight.float(), "float32")
    return {"weight": codes, "weight_scale": scale.to(torch.bfloat16)}


def mxfp4(weight: Tensor) -> Tensors:
    codes, scale = quantize_fp4_weight(weight.float())
    return {"weight_packed": codes.view(torch.uint8), "weight_scale": scale.view(torch.uint8)}


def requantise(experts: Callable[[Tensor], Tensors], linears: Callable[[Tensor], Tensors] | None = None):
    """A change of a folder's tensors: routed experts, and linears of attention, in the forms of a quantiser."""

    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith(".weight")]:
            form = experts if ".ffn.experts." in name else linears if ".attn.w" in name else None
            if form is not None and not name.startswith("mtp."):
                stem, weight = name.removesuffix("weight"), tensors.pop(name)
                tensors |= {f"{stem}{word}": part for word, part in form(weight).items()}

    return change


FORMS = {
    "NVFP4 (ModelOpt)": (nvfp4_modelopt, None),
    "NVFP4 (compressed-tensors)": (nvfp4_compressed_tensors, fp8_blocks),
    "packed integers (compressed-tensors)": (w4a16, fp8_blocks),
    "packed integers (GPTQ, AutoRound)": (gptq, None),
    "FP8 or int8 with row scales": (fp8_rows, fp8_rows),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_load_says_to_convert_and_a_conversion_keeps_the_values(save, tmp_path: Path, form: str) -> None:
    folder = rewrite(save("fp32"), requantise(*FORMS[form]))
    (folder / "hf_quant_config.json").write_text("{}")
    said = refused(folder)
    assert f"weights are stored as {form} (first: 'layers.0." in said
    assert f"dsv4 convert {folder}" in said
    assert check_folder(folder).layout == form
    sentences: list[str] = []
    convert(folder, tmp_path / "fp32", dtype="fp32", report=sentences.append)
    assert all("kept exactly" in sentence and "rounded" not in sentence for sentence in sentences)
    reader, values = CheckpointReader(folder), state(tmp_path / "fp32")
    assert reader.packed
    for name in reader.packed:
        assert torch.equal(values[name], reader.unpacked(name, tuple(values[name].shape))), name
    assert not (tmp_path / "fp32" / "hf_quant_config.json").exists()
    layout = convert(folder, tmp_path / "out", report=sentences.append)
    assert layout.name == ("release_fp8" if form == "FP8 or int8 with row scales" else "release")
    report = check_folder(tmp_path / "out")
    assert report.ok, report.problems
    assert report.notes == ()
    assert any(form in sentence and "relative error" in sentence for sentence in sentences)


def test_forms_with_the_numbers_of_the_release_load(save) -> None:
    right = rewrite(save("fp32", "right"), lambda tensors: None)
    folder = rewrite(save("fp32", "other"), requantise(mxfp4, fp8_blocks))
    wanted, got = state(right), state(folder)
    assert wanted.keys() == got.keys()
    for name, value in wanted.items():
        error = float((got[name].float() - value.float()).norm() / value.float().norm())
        assert error < (0.16 if ".experts." in name else 0.04), name
    assert check_folder(folder).ok
    state(folder, "release")


def test_nvfp4_of_released_experts_goes_back_to_the_same_numbers(save, tmp_path: Path) -> None:
    right = save("release", "right")
    values = state(right)

    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if ".ffn.experts." in name and name.endswith(".weight")]:
            stem = name.removesuffix("weight")
            del tensors[name], tensors[f"{stem}scale"]
            tensors |= {f"{stem}{word}": part for word, part in nvfp4_modelopt(values[name]).items()}

    folder = edit_config(
        rewrite(save("release", "other"), change),
        quantization_config={
            "quant_method": "fp8",
            "fmt": "e4m3",
            "weight_block_size": [128, 128],
            "moe_quant_algo": "NVFP4",
            "quant_algo": "MIXED_PRECISION",
            "quantized_layers": {"layers.0.ffn.experts": {"quant_algo": "NVFP4", "group_size": 16}},
            "ignore": ["*.attn.*", "mtp.*"],
        },
    )
    convert(folder, tmp_path / "out")
    got = state(tmp_path / "out")
    changed = [name for name in values if not torch.equal(values[name], got[name])]
    assert not changed


def test_fp8_where_the_release_has_none_is_converted(save, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith((".wkv.weight", ".wgate.weight"))]:
            if ".compressor." in name:
                codes, scale = quantize_fp8_weight(tensors[name].float())
                tensors |= {name: codes, name.replace("weight", "weight_scale_inv"): scale.float()}

    folder = rewrite(save("release"), change)
    assert "FP8 where the release has none (compressor)" in refused(folder)
    convert(folder, tmp_path / "out")
    assert check_folder(tmp_path / "out").ok
