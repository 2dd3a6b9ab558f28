"""Record `requantized/*.safetensors`: one small weight in each form of other quantisers, and the values that the
quantiser itself reads from it.

    python tests/golden/record_requantized.py       needs compressed-tensors, nvidia-modelopt and auto-round

Recorded with compressed-tensors 0.20.0, nvidia-modelopt 0.47.0, auto-round 0.16.1. Files hold the tensors of the
weight under the last words of their names, and `values`.
"""

from pathlib import Path

import torch
from auto_round_extension.torch.qlinear_torch_zp import QuantLinear
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor
from safetensors.torch import save_file
from torch import Tensor

ROWS, COLUMNS = 16, 256
COMPRESSED = {  # file -> scheme, format
    "nvfp4_compressed_tensors": ("NVFP4A16", "nvfp4-pack-quantized"),
    "w4a16": ("W4A16", "pack-quantized"),
    "w4a16_asymmetric": ("W4A16_ASYM", "pack-quantized"),
    "w8a16": ("W8A16", "pack-quantized"),
    "mxfp4": ("MXFP4A16", "mxfp4-pack-quantized"),
    "fp8_blocks": ("FP8_BLOCK", "float-quantized"),
    "fp8_rows": ("FP8_DYNAMIC", "float-quantized"),
    "int8_rows": ("INT8_W8A8", "int-quantized"),
}


def compressed_tensors(weight_NK: Tensor, scheme_name: str, form: str) -> dict[str, Tensor]:
    """The tensors of compressed-tensors, with scales from the minimum and maximum of each group."""
    scheme: QuantizationScheme = preset_name_to_scheme(scheme_name.replace("INT8_W8A8", "INT8"), ["Linear"])
    settings = scheme.weights
    groups = weight_NK.float().unsqueeze(1)  # one group: a row
    if settings.group_size:
        groups = weight_NK.float().unflatten(1, (-1, settings.group_size))
    if settings.block_structure:
        N, K = settings.block_structure
        tiles = torch.nn.functional.pad(weight_NK.float(), (0, 0, 0, -weight_NK.shape[0] % N))
        groups = tiles.unflatten(0, (-1, N)).unflatten(2, (-1, K)).permute(0, 2, 1, 3).flatten(2)
    low, high = groups.amin(-1), groups.amax(-1)
    state = {"weight": weight_NK}
    total = generate_gparam(weight_NK.min().float(), weight_NK.max().float()) if form.startswith("nvfp4") else None
    scale, zero = calculate_qparams(low, high, settings, global_scale=total)
    state["weight_scale"] = scale if form.startswith(("nvfp4", "mxfp4")) else scale.to(weight_NK.dtype)
    if total is not None:
        state["weight_global_scale"] = total.reshape(1)
    if not settings.symmetric:
        state["weight_zero_point"] = zero.to(torch.int8)
    compressor = BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress(state, scheme)
    return {**stored, "values": compressor.decompress(stored, scheme)["weight"]}


def modelopt(weight_NK: Tensor) -> dict[str, Tensor]:
    codes, scale, total = NVFP4QTensor.quantize(weight_NK.float(), 16)
    values = codes.dequantize(torch.float32, scale=scale, double_scale=total, block_sizes={-1: 16})
    return {
        "weight": codes._quantized_data,
        "weight_scale": scale,
        "weight_scale_2": total,
        "input_scale": torch.tensor(1.0),
        "values": values,
    }


def auto_round(weight_NK: Tensor) -> dict[str, Tensor]:
    weight_NK = weight_NK.float().reshape(32, -1)  # zeros are packed for 32 rows at a time
    rows, columns, group = 32, weight_NK.shape[1], 32
    layer = QuantLinear(4, group, columns, rows, bias=False)
    linear = torch.nn.Linear(columns, rows, bias=False)
    linear.weight.data = weight_NK
    scale = (weight_NK.unflatten(1, (-1, group)).abs().amax(-1) / 7.5).half().float()
    layer.pack_248_bits(linear, scale, torch.full_like(scale, 8.0), device="cpu")
    parts = {name: getattr(layer, name) for name in ("qweight", "qzeros", "scales")}
    values = layer(torch.eye(columns)).T.half()  # the layer multiplies in float16
    return {**parts, "values": values}


def main() -> None:
    folder = Path(__file__).parent / "requantized"
    weight = (torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(11)) / 16).to(torch.bfloat16)
    few = weight[: ROWS // 2].contiguous()  # compressed-tensors cannot read zeros of 8 rows back
    found = {
        name: compressed_tensors(weight if name.endswith("asymmetric") else few, *kind)
        for name, kind in COMPRESSED.items()
    }
    found |= {"nvfp4_modelopt": modelopt(few), "gptq_auto_round": auto_round(weight)}
    for name, tensors in found.items():
        plain = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
        save_file(plain, folder / f"{name}.safetensors")


if __name__ == "__main__":
    main()
