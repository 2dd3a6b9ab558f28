"""Which layers of a model get adapters, and a model that trains nothing else."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch

from dsv4.checkpoint import load_into
from dsv4.checkpoint.adapter import adaptable
from dsv4.config import Mode, ModelConfig
from dsv4.model.layers import MODES
from dsv4.model.lora import LowRankAdapter, attach_adapter
from dsv4.model.transformer import Transformer
from dsv4.posttraining.base_model import BaseModel
from dsv4.training.settings import LoraSettings


def target_layers(config: ModelConfig, targets: Sequence[str]) -> list[str]:
    """The layers that `targets` name, in the model's order: the last parts of a released name, in which * stands for
    any part (`attn.wq_b`, `shared_experts.w1`, `experts.*.w2`). Raises ValueError for a target that names none."""
    known, found = list(adaptable(config)), set()
    for target in targets:
        own = [layer for layer in known if _ends_in(layer, target)]
        if not own:
            kinds = sorted({".".join("*" if part.isdigit() else part for part in x.split(".")[2:]) for x in known})
            raise ValueError(f"lora.targets: no layer is called {target!r}; there are {', '.join(kinds)}")
        found |= {*own}
    return [layer for layer in known if layer in found]


def _ends_in(layer: str, target: str) -> bool:
    parts, wanted = layer.split("."), target.split(".")
    return len(wanted) <= len(parts) and all(map(fnmatchcase, parts[-len(wanted) :], wanted))


def adapted(base: BaseModel, settings: LoraSettings, seed: int, *, stored: bool) -> Transformer:
    """The base with new adapters, which alone ask for gradients; without its prediction block, which only drafts.

    stored: the weights stay as they lie in the folder (FP8, FP4, bfloat16) and compute as in mode release; else all of
    them are multiplied out to float32. Raises ValueError naming a target or tensor.
    """
    mode: Mode = "release" if stored else "fp32"
    config = base.config.without_prediction() if base.config.predicts else base.config
    with torch.device("meta"):
        model = Transformer(config, MODES[mode])
    load_into(model, config, base.reader, mode, mtp=False)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    linears = adaptable(config)
    for layer in target_layers(config, settings.targets):
        rows, columns = linears[layer].shape
        adapter = LowRankAdapter(columns, rows, settings.rank, settings.alpha / settings.rank)
        adapter.draw(generator)
        attach_adapter(model, layer, adapter)
    return model
