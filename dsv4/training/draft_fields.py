"""What a recipe with a table [draft] does not say: the model's folder decides it, or the usual sizes are taken."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from dsv4.checkpoint import open_folder
from dsv4.config import DSpark, ModelConfig
from dsv4.training.settings import FROM_ELSEWHERE, DraftSettings

STAGES, BLOCK, RANK = 3, 5, 256  # as released
_SIZES = ("stages", "block_size", "markov_rank", "target_layer_ids", "noise_token_id")


def complete(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's tables with all that the folder `init` decides: the model, its tokenizer, the head's sizes. Raises
    ValueError for what is missing or may not be given."""
    where, draft = raw.get("init"), raw["draft"]
    if not isinstance(where, str):
        raise ValueError("draft needs init: the folder of the model that a draft head is trained for")
    if not isinstance(draft, Mapping):
        raise ValueError(f"draft must be a table, got {draft!r:.80}")
    if "model" in raw and "stages" in draft:
        return dict(raw)  # completed before
    if "model" in raw:
        raise ValueError("model: comes from the folder that init names, and may not be given with draft")
    config = open_folder(Path(where).expanduser()).config
    plain = TypeAdapter(ModelConfig).dump_python(config.without_prediction(), mode="json")
    model = {field.name: plain[field.name] for field in fields(ModelConfig) if field.name not in FROM_ELSEWHERE}
    data = {"tokenizer": where, **raw.get("data", {})}
    return {"mtp_weights": [0.0, 0.0], **raw, "model": model, "data": data, "draft": {**draft, **_sizes(draft, config)}}


def _sizes(draft: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """The head's sizes: those of the folder's own head, or those of the recipe and the usual ones."""
    if config.dspark is not None:
        given = [name for name in _SIZES if name in draft]
        if given:
            raise ValueError(f"draft.{given[0]}: the model has a draft head already, which is trained further")
        return {name: getattr(config.dspark, name) for name in _SIZES}
    layers = config.num_hidden_layers
    usual = {
        "stages": STAGES,
        "block_size": BLOCK,
        "markov_rank": RANK,
        "target_layer_ids": list(range(max(0, layers - STAGES), layers)),
        "noise_token_id": config.vocab_size - 1,
    }
    return {name: draft.get(name, value) for name, value in usual.items()}


def with_head(config: ModelConfig, draft: DraftSettings) -> ModelConfig:
    """The config of a model with this head. Raises ValueError naming a wrong size."""
    values = {name: getattr(draft, name) for name in _SIZES}
    head = DSpark(**values)
    ratios = (*config.compress_ratios[: config.num_hidden_layers], *(0,) * head.stages)
    return config.with_changes(num_nextn_predict_layers=0, dspark=head, compress_ratios=ratios)
