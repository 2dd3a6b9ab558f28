"""A deeper model that says the same: new layers start as copies of others and add nothing yet.

What is left to learn may need more steps than a small model has layers. Training from nothing throws away what it
knows; a copy whose last products are zero and whose residual streams pass through keeps it, and learns from its first
step on, since the copied parts below those products see what they saw before (block expansion, LLaMA Pro, 2024).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dsv4.checkpoint import FP32, save_checkpoint, state_for
from dsv4.config import ModelConfig
from dsv4.posttraining.base_model import BaseModel

PASS = 12.0  # logit of a stream's way to itself; e^-12 of it reaches another stream
_WRITES = (".attn.wo_b.weight", ".w2.weight")


def deeper_config(config: ModelConfig, order: Sequence[int]) -> ModelConfig:
    """The config of the layers in `order`, which names a layer of the old model at each place; the first place of a
    layer is the layer itself, a later one a new layer of its kind. Raises ValueError where a layer is missing, out of
    its order, or copied although it is routed by token ids."""
    layers = config.num_hidden_layers
    firsts = list(dict.fromkeys(order))
    if firsts != list(range(layers)):
        raise ValueError(f"layers: expected 0 to {layers - 1} once each in this order, and copies behind; got {order}")
    copied = [index for place, index in enumerate(order) if index in order[:place]]
    for index in copied:
        if index < config.num_hash_layers:
            raise ValueError(f"layers: {index} is routed by token ids, which only the lowest layers are; copy another")
    ratios = [config.compress_ratios[index] for index in order]
    head = config.dspark
    if head is not None:  # its stages read what the same layers gave before
        head = replace(head, target_layer_ids=tuple(order.index(index) for index in head.target_layer_ids))
    return config.with_changes(
        num_hidden_layers=len(order), compress_ratios=(*ratios, *config.compress_ratios[layers:]), dspark=head
    )


def deeper_state(model: BaseModel, order: Sequence[int]) -> dict[str, Tensor]:
    """Every parameter of the deeper model by name, in float32, FP8 and FP4 multiplied out."""
    deeper_config(model.config, order)
    places: dict[int, list[int]] = {}
    for place, index in enumerate(order):
        places.setdefault(index, []).append(place)
    found: dict[str, Tensor] = {}
    for name, value in state_for(model.config, model.reader, "fp32"):
        if not name.startswith("layers."):
            found[name] = value
            continue
        _, index, rest = name.split(".", 2)
        own, *copies = places[int(index)]
        found[f"layers.{own}.{rest}"] = value
        for place in copies:
            found[f"layers.{place}.{rest}"] = _silent(rest, value, model.config.hc_mult)
    model.reader.release()
    return found


def _silent(rest: str, value: Tensor, streams: int) -> Tensor:
    """A copy of one parameter of a layer, changed so that the layer adds nothing and mixes no streams."""
    copy = value.clone()
    if f".{rest}".endswith(_WRITES):
        copy.zero_()
    elif rest in ("hc_attn_fn", "hc_ffn_fn"):
        copy[2 * streams :] = 0
    elif rest in ("hc_attn_base", "hc_ffn_base"):
        copy[2 * streams :] = PASS * torch.eye(streams).flatten()
    return copy


def save_deeper(folder: Path, base: Path, order: Sequence[int]) -> ModelConfig:
    """Write the deeper model as a float32 folder of its own, with the old one's tokenizer; returns its config."""
    model = BaseModel.open(base)
    model.check_apart(folder)
    config = deeper_config(model.config, order)
    save_checkpoint(folder, config, deeper_state(model, order), FP32, extra_files=model.files())
    return config
