"""LoRA adapters on disk, in PEFT's layout: adapter_config.json and adapter_model.safetensors.

    base_model.model.model.layers.0.self_attn.q_a_proj.lora_A.weight    [rank, columns]
    base_model.model.model.layers.0.self_attn.q_a_proj.lora_B.weight    [rows, rank]

Layers have the names that transformers gives its modules, so that PEFT finds them; all spellings of `spellings` are
read. The sum is the one PEFT computes: W + lora_alpha / r * B A.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsv4.checkpoint.format import CheckpointError, TensorSpec, data_order, encode_header, read_header, read_json
from dsv4.checkpoint.spellings import released_name, transformers_name
from dsv4.checkpoint.writer import write_json
from dsv4.config import ModelConfig
from dsv4.files import write_whole
from dsv4.model.lora import LowRankAdapter
from dsv4.parameters import Parameter, Storage, parameters

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
PREFIX, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# settings of PEFT that change what an adapter computes, and the values at which they do not
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, []),
    "use_qalora": (False, None),
}


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that fits a model. factors: (down, up) of every layer, by its released name. factor: what their
    product is multiplied with. digest: the same for the same adapter."""

    folder: Path
    factor: float
    factors: Mapping[str, tuple[Tensor, Tensor]]
    digest: str

    def layer(self, name: str) -> LowRankAdapter:
        """The adapter of one layer, as a module without gradients."""
        down, up = self.factors[name]
        made = LowRankAdapter(down.shape[1], up.shape[0], down.shape[0], self.factor)
        made.down.data, made.up.data = down, up
        return made.requires_grad_(False)

    def merged(self, parameter: Parameter, value: Tensor) -> Tensor:
        """A parameter's values with what the adapter changes, float32."""
        layer = parameter.name.removesuffix(".weight")
        value = value.to(torch.float32)
        return value + self.layer(layer).change() if layer in self.factors else value


def adaptable(config: ModelConfig) -> dict[str, Parameter]:
    """The linears that an adapter may lie on, by layer: attention, indexer and experts, without the prediction block,
    which only drafts."""
    wanted = (p for p in parameters(config) if p.storage in (Storage.LINEAR, Storage.EXPERT) and not p.prediction)
    return {parameter.name.removesuffix(".weight"): parameter for parameter in wanted}


def read_adapter(folder: str | Path, config: ModelConfig) -> Adapter:
    """Read an adapter for a model. Raises CheckpointError or FileNotFoundError naming the file and the field or tensor
    that does not fit."""
    place = Path(folder)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (place / name).is_file():
            raise FileNotFoundError(f"{place}: no adapter: there is no {name}")
    raw = read_json(place / CONFIG_NAME)
    rank, factor = _settings(place / CONFIG_NAME, raw)
    file = place / WEIGHTS_NAME
    data = file.read_bytes()
    known, halves = adaptable(config), {}
    for name, entry in read_header(file).items():
        layer, half = _layer_and_half(file, name)
        if layer not in known:
            raise CheckpointError(f"{file}: tensor {name!r}: the model has no linear layer {layer!r}")
        _check(file, name, entry.spec, known[layer], half, rank)
        if (layer, half) in halves:
            raise CheckpointError(f"{file}: tensor {name!r}: {layer} is there in two spellings")
        stored = torch.frombuffer(bytearray(data[entry.begin : entry.end]), dtype=entry.spec.dtype)
        values = stored.reshape(entry.spec.shape).to(torch.float32)
        if not bool(values.isfinite().all()):
            raise CheckpointError(f"{file}: tensor {name!r} holds NaN or infinity")
        halves[layer, half] = values
    layers = sorted({layer for layer, _ in halves})
    for layer in layers:
        for half in (DOWN, UP):
            if (layer, half) not in halves:
                raise CheckpointError(f"{file}: {layer} has no tensor *{half}")
    if not layers:
        raise CheckpointError(f"{file}: holds no tensors")
    digest = hashlib.blake2b((place / CONFIG_NAME).read_bytes() + data, digest_size=16).hexdigest()
    return Adapter(place, factor, {layer: (halves[layer, DOWN], halves[layer, UP]) for layer in layers}, digest)


def write_adapter(folder: Path, adapters: Mapping[str, LowRankAdapter], base: str, alpha: float) -> None:
    """Write adapters by released layer name; base: the folder of the model they lie on. OSError names the file."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for layer, adapter in adapters.items():
        name = PREFIX + transformers_name(layer)
        tensors[name + DOWN], tensors[name + UP] = adapter.down.detach(), adapter.up.detach()
    specs = data_order({name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()})
    data = [tensors[name].cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for name in specs]
    write_whole(folder / WEIGHTS_NAME, lambda out: out.write(b"".join([encode_header(specs), *data])))
    ranks = {adapter.down.shape[0] for adapter in adapters.values()}
    write_json(folder / CONFIG_NAME, _config(adapters, base, ranks.pop(), alpha))


def _config(layers: Iterable[str], base: str, rank: int, alpha: float) -> dict[str, Any]:
    return {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": [transformers_name(layer) for layer in layers],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def _settings(file: Path, raw: Mapping[str, Any]) -> tuple[int, float]:
    """Rank and factor. Raises CheckpointError for an adapter that is more than two matrices a layer."""
    if str(raw.get("peft_type")).upper() != "LORA":
        raise CheckpointError(f"{file}: peft_type must be LORA, got {raw.get('peft_type')!r}")
    for name, neutral in _NEUTRAL.items():
        if name in raw and raw[name] not in neutral:
            raise CheckpointError(f"{file}: {name} is {raw[name]!r}, and only adapters without it are read")
    rank, alpha = raw.get("r"), raw.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise CheckpointError(f"{file}: r must be an integer of at least 1, got {rank!r}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise CheckpointError(f"{file}: lora_alpha must be a finite number, got {alpha!r}")
    return rank, alpha / (math.sqrt(rank) if raw.get("use_rslora") else rank)


def _layer_and_half(file: Path, name: str) -> tuple[str, str]:
    """The released name of a tensor's layer, and which of its two matrices it is."""
    for half in (DOWN, UP):
        if name.endswith(half):
            return released_name(name.removeprefix(PREFIX).removesuffix(half) + ".weight").removesuffix(".weight"), half
    raise CheckpointError(f"{file}: tensor {name!r}: expected a name that ends in {DOWN} or {UP}")


def _check(file: Path, name: str, spec: TensorSpec, parameter: Parameter, half: str, rank: int) -> None:
    rows, columns = parameter.shape
    wanted = (rank, columns) if half == DOWN else (rows, rank)
    if spec.shape != wanted or spec.dtype not in _FLOATS:
        raise CheckpointError(f"{file}: tensor {name!r} should be F32 {list(wanted)} (rank {rank}), is {spec}")
