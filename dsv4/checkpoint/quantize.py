"""Save a trained model: from float parameters to a folder in any layout."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from dsv4.checkpoint.format import CheckpointError
from dsv4.checkpoint.names import BF16, INT4_GROUP, W4A16, Layout, expected_tensors, packed_name, shard_of, stored
from dsv4.checkpoint.requantized.packed_integers import COMPRESSED_TENSORS, quantize_w4a16
from dsv4.checkpoint.shapes import check_shapes
from dsv4.checkpoint.writer import CheckpointWriter, shards_by_size, write_json
from dsv4.config import ModelConfig
from dsv4.kernels.quant import (
    dequantize_weight,
    quantize_fp4_weight,
    quantize_fp8_weight,
    simulate_fp4_weight,
    simulate_fp8_weight,
)
from dsv4.parameters import Parameter, parameters

# What compressed-tensors says of such a folder; the patterns are regular expressions over names of modules.
W4A16_CONFIG: Mapping[str, Any] = MappingProxyType(
    {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": [r"re:.*\.experts\.\d+\..*"],
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": INT4_GROUP,
                    "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
            }
        },
        "ignore": [r"re:.*attn.*", r"re:.*shared_experts.*", r"re:.*\.gate$", r"re:.*(embed|head|proj)$"],
    }
)


def store_parameter(parameter: Parameter, value: Tensor, layout: Layout) -> dict[str, Tensor]:
    """The tensors that hold a float parameter in a layout. Raises CheckpointError naming it."""
    name = parameter.name
    if tuple(value.shape) != parameter.shape:
        raise CheckpointError(f"tensor {name!r} should have shape {list(parameter.shape)}, got {list(value.shape)}")
    wanted = stored(parameter, layout)
    value = value.detach()
    if name not in wanted:
        try:
            parts = quantize_w4a16(value, INT4_GROUP)
        except ValueError as error:
            raise CheckpointError(f"tensor {name!r}: {error}") from None
        return {packed_name(name, word): part for word, part in parts.items()}
    dtype = wanted[name].dtype
    if dtype == torch.int64 and value.dtype != torch.int64:
        raise CheckpointError(f"tensor {name!r} should be int64, got {value.dtype}")
    if len(wanted) == 1:
        return {name: value.to(dtype)}
    scale_dtype = wanted[parameter.scale_name].dtype
    try:
        if dtype == torch.int8:
            weight, scale = quantize_fp4_weight(value)
        else:
            weight, scale = quantize_fp8_weight(value, "float32" if scale_dtype == torch.float32 else "ue8m0")
    except ValueError as error:
        raise CheckpointError(f"tensor {name!r}: {error}") from None
    return {name: weight, parameter.scale_name: scale}


def stored_values(parameter: Parameter, tensors: Mapping[str, Tensor]) -> Tensor:
    """The float32 values that the tensors of `store_parameter` hold."""
    if parameter.name not in tensors:
        parts = {name.rpartition(".")[2]: tensor for name, tensor in tensors.items()}
        return COMPRESSED_TENSORS.values(parts, parameter.shape)
    weight, scale = tensors[parameter.name], tensors.get(parameter.scale_name)
    return weight.to(torch.float32) if scale is None else dequantize_weight(weight, scale)


_ROUND_TRIPS = {torch.int8: simulate_fp4_weight, torch.float8_e4m3fn: simulate_fp8_weight}


def round_trip(parameter: Parameter, value: Tensor, layout: Layout) -> Tensor:
    """`stored_values` of `store_parameter`; weights with block scales skip the stored form."""
    wanted = stored(parameter, layout)
    form = wanted.get(parameter.name)
    cast = _ROUND_TRIPS.get(form.dtype) if form is not None and len(wanted) == 2 else None
    if cast is None or tuple(value.shape) != parameter.shape:
        return stored_values(parameter, store_parameter(parameter, value, layout))
    try:
        return cast(value.detach())
    except ValueError as error:
        raise CheckpointError(f"tensor {parameter.name!r}: {error}") from None


def quantize_state(
    state: Iterable[tuple[str, Tensor]], config: ModelConfig, layout: Layout
) -> Iterator[tuple[str, Tensor]]:
    """Turn named float parameters into the stored tensors of a layout, one at a time and in the given order.

    Raises CheckpointError for a name that the model does not have, a wrong shape, NaN or infinity in a weight
    to be quantised. The writer checks that no parameter is missing.
    """
    known = {parameter.name: parameter for parameter in parameters(config)}
    for name, value in state:
        if name not in known:
            raise CheckpointError(f"the model has no parameter {name!r}")
        yield from store_parameter(known[name], value, layout).items()


def config_for(config: ModelConfig, layout: Layout) -> ModelConfig:
    """The configuration that belongs to a folder in this layout."""
    experts = layout.experts if layout.linears == "fp8" else None
    return config.with_changes(quantized=layout.linears == "fp8", expert_dtype=experts)


def save_checkpoint(
    folder: str | Path,
    config: ModelConfig,
    state: Mapping[str, Tensor] | Iterator[tuple[str, Tensor]],
    layout: Layout = BF16,
    *,
    extra_files: Mapping[str, bytes] | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Write float parameters as a complete folder: shards, index, config.json, generation_config.json, extra
    files.

    `state` is a mapping or an iterator of (name, tensor) that covers every parameter once. Shards follow the
    release (one per layer) unless `max_shard_bytes` is given. The index is written last. Raises
    CheckpointError when the folder already holds a checkpoint or the state does not fit the config.
    """
    target = Path(folder)
    check_shapes(config, layout=layout)
    for name in extra_files or {}:
        if Path(name).name != name:
            raise ValueError(f"extra_files: expected plain file names, got {name!r}")
    plan = expected_tensors(config, layout)
    shard = shards_by_size(plan, max_shard_bytes) if max_shard_bytes else lambda name: shard_of(name, config)
    items = state if isinstance(state, Iterator) else state.items()
    with CheckpointWriter(target, plan, shard) as writer:
        write_configs(target, config, layout)
        for name, content in (extra_files or {}).items():
            (target / name).write_bytes(content)
        for name, tensor in quantize_state(items, config, layout):
            writer.write(name, tensor)


def write_configs(folder: Path, config: ModelConfig, layout: Layout) -> None:
    """config.json for the layout, and the released generation defaults unless the folder has its own."""
    raw = config_for(config, layout).to_dict()
    if layout.linears == "fp32":
        raw["torch_dtype"] = "float32"
    if layout is W4A16:
        raw["quantization_config"] = dict(W4A16_CONFIG)
    write_json(folder / "config.json", raw)
    if not (folder / "generation_config.json").exists():
        defaults = {
            "_from_model_config": True,
            "bos_token_id": config.bos_token_id,
            "eos_token_id": raw["eos_token_id"],
            "do_sample": True,
            "temperature": 1.0,
            "top_p": 1.0,
        }
        write_json(folder / "generation_config.json", defaults)
