"""The plain average of several models' weights: the cheapest merge of specialists, and a control for distillation."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from dsv4.checkpoint import save_checkpoint, state_for
from dsv4.checkpoint.names import Layout
from dsv4.posttraining.base_model import BaseModel


def average_weights(models: Sequence[BaseModel], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """By name, in float32, FP8 and FP4 multiplied out; tables of token ids are those of the first. weights: how much
    each counts, all alike where not given. One model is in memory beside the sum. Raises ValueError where two are of
    different shapes, or the weights do not fit."""
    if not models:
        raise ValueError("average: no models")
    counts = list(weights) if weights is not None else [1.0] * len(models)
    if len(counts) != len(models) or not sum(counts) > 0 or min(counts) < 0:
        raise ValueError(f"average: {len(models)} models need as many weights of at least 0, got {counts}")
    first = models[0]
    found: dict[str, Tensor] = {}
    for model, count in zip(models, counts, strict=True):
        if model.config != first.config:
            raise ValueError(f"average: {model.folder} is a model of another shape than {first.folder}")
        share = count / sum(counts)
        for name, value in state_for(model.config, model.reader, "fp32"):
            if not value.is_floating_point():
                found.setdefault(name, value.clone())
            elif name not in found:
                found[name] = value * share
            else:
                found[name] += value * share
        model.reader.release()
    return found


def save_average(folder: Path, paths: Sequence[Path], layout: Layout, weights: Sequence[float] | None = None) -> None:
    """Write the average of the models in `paths` as a folder of its own, with the first one's tokenizer."""
    models = [BaseModel.open(path) for path in paths]
    save_checkpoint(folder, models[0].config, average_weights(models, weights), layout)
    for name, content in models[0].files().items():
        (folder / name).write_bytes(content)
