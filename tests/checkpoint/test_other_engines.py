"""Folders for engines that read no FP4: FP8 without loss where FP8 can, and 4-bit integers of compressed-tensors."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from dsv4.checkpoint import CheckpointError, CheckpointReader, check_folder, convert
from dsv4.checkpoint.requantized.packed_integers import COMPRESSED_TENSORS, pack, quantize_w4a16, unpack
from dsv4.kernels.quant import dequantize_weight, fp4_to_fp8_weight, quantize_fp4_weight
from tests.checkpoint.folders import Tensors, refused, rewrite, state

EXPERT = "layers.1.ffn.experts.2.w1"


def test_every_fp4_code_is_exact_in_fp8_down_to_a_ratio_of_2_to_the_14() -> None:
    """All 16 codes under every pair of scales of a tile: e4m3 has the multiples of 2^-9 below 2^-6, so half a step
    (code 1, 0.5) survives ratios up to 2^14 below the largest scale, and 2^-15 only without odd halves."""
    packed = torch.tensor([[low | high << 4 for low, high in itertools.pairwise([*range(16), 0])] * 8]).to(torch.int8)
    for ratio in range(18):
        scale = torch.tensor([[127, 127 - ratio] * 4], dtype=torch.uint8).view(torch.float8_e8m0fnu)
        if ratio <= 14:
            weight, tile = fp4_to_fp8_weight(packed, scale)
            assert torch.equal(dequantize_weight(weight, tile), dequantize_weight(packed, scale))
        else:
            with pytest.raises(ValueError, match=r"not lossless in tile \(0, 0\): scale ratio above 2\^14"):
                fp4_to_fp8_weight(packed, scale)


def _uneven(tensors: Tensors) -> None:
    """A tile whose scales are too far apart for FP8."""
    scale = tensors[f"{EXPERT}.scale"].view(torch.uint8)
    scale[0, 0], scale[1, 1] = 127, 112
    tensors[f"{EXPERT}.weight"][1] = 0x11  # all codes are 1: half a step


def test_fp4_that_fp8_cannot_hold_is_rounded_only_on_request(save, tmp_path: Path) -> None:
    src = rewrite(save("release"), _uneven)
    with pytest.raises(CheckpointError, match=rf"'{EXPERT}.weight': fp4 to fp8 is not lossless .*--requantize rounds"):
        convert(src, tmp_path / "exact", experts="fp8")
    said: list[str] = []
    layout = convert(src, tmp_path / "rounded", experts="fp8", requantize=True, report=said.append)
    assert layout.name == "release_fp8"
    assert "1 weights stored as FP4 that FP8 cannot hold exactly: 0 kept exactly, the others rounded" in said[-1]
    assert check_folder(tmp_path / "rounded").ok
    before, after = state(src), state(tmp_path / "rounded")
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert changed == [f"{EXPERT}.weight"]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_pack_is_the_inverse_of_unpack(bits: int) -> None:
    numbers = torch.randint(0, 1 << bits, (3, 64), generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpack(pack(numbers, bits), bits, 64), numbers.to(torch.int32))


def test_fp4_blocks_below_four_steps_are_exact_in_four_bit_integers() -> None:
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, -0.5, -1, -1.5, -2, -3, 0, 1, 0.5, 3, 2] * 2).repeat(4, 2)
    values[1] *= 2.0**-20
    values[2] = 0
    parts = quantize_w4a16(values, 32)
    assert torch.equal(COMPRESSED_TENSORS.values(parts, (4, 64)), values)
    assert not parts["weight_scale"][2].any()
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_w4a16(torch.full((1, 32), torch.inf), 32)


def test_other_values_are_rounded_by_less_than_a_step() -> None:
    released = dequantize_weight(*quantize_fp4_weight(torch.randn(64, 256, generator=torch.Generator().manual_seed(0))))
    parts = quantize_w4a16(released, 32)
    values = COMPRESSED_TENSORS.values(parts, (64, 256))
    step = parts["weight_scale"].float().repeat_interleave(32, 1)
    assert float(((values - released).abs() / step).max()) <= 1.001
    error = float((values - released).norm() / released.norm())
    assert error < 0.12


def test_a_w4a16_folder(save, tmp_path: Path) -> None:
    said: list[str] = []
    assert convert(save("release"), tmp_path / "w4", dtype="bf16", experts="w4a16", report=said.append).name == "w4a16"
    assert "weights stored as FP4, now W4A16: " in said[-1]
    settings = json.loads((tmp_path / "w4" / "config.json").read_text())["quantization_config"]
    assert (settings["quant_method"], settings["format"]) == ("compressed-tensors", "pack-quantized")
    reader = CheckpointReader(tmp_path / "w4")
    assert len(reader.packed) == 5 * 4 * 3
    assert not [name for name in reader.names() if ".experts." in name and not name.startswith("mtp")]
    assert "stored as packed integers (compressed-tensors)" in refused(tmp_path / "w4")
    back: list[str] = []
    convert(tmp_path / "w4", tmp_path / "back", dtype="fp32", report=back.append)
    assert "60 weights stored as packed integers (compressed-tensors): 60 kept exactly" in back
    assert check_folder(tmp_path / "back").ok


def test_w4a16_goes_with_bf16(save, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bf16, fp4 or w4a16"):
        convert(save("release"), tmp_path / "w4", experts="w4a16")
