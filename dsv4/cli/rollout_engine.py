"""The engine that makes rollouts beside a learner in this process: its own model, in the numerics of the rollouts."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dsv4.checkpoint import CheckpointReader, load_into, save_checkpoint
from dsv4.checkpoint.names import RELEASE
from dsv4.config import Mode, ModelConfig
from dsv4.engine import Engine
from dsv4.engine.service import EngineService
from dsv4.engine.weights import EngineWeights, copy_weights
from dsv4.model.layers import MODES
from dsv4.model.transformer import Transformer


@contextmanager
def rollout_engine(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    numerics: Mode,
    *,
    context: int,
    sequences: int,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[EngineService, EngineWeights]]:
    """A running engine with these weights, and the sink that gives it others. release: experts in FP4, linears in FP8,
    stored and read again as a finished model would be."""
    device = torch.device(device)
    if numerics == "release":
        config = config.with_changes(quantized=True, expert_dtype="fp4")
    put = partial(_put_released, device=device) if numerics == "release" else copy_weights
    with torch.device("meta") if numerics == "release" else device:
        model = Transformer(config, MODES[numerics])
    put(model, weights)
    model.requires_grad_(False).eval()
    engine = Engine(
        model,
        context_length=min(context, config.max_position_embeddings),
        sequences=sequences,
        step_tokens=max(512, 2 * sequences),
        queue=1 << 20,
    )
    service = EngineService(engine)
    try:
        yield service, EngineWeights(service, put)
    finally:
        service.close()


def _put_released(model: Transformer, weights: Mapping[str, Tensor], device: torch.device) -> None:
    """Through files of the released layout: one way to quantise, and the model is checked as any folder is."""
    with tempfile.TemporaryDirectory(prefix="dsv4-weights-") as name:
        folder = Path(name) / "model"
        save_checkpoint(folder, model.config, weights, RELEASE)
        load_into(model, model.config, CheckpointReader(folder), "release")
        # what is not cast is a view of the files, which are gone in a moment
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        model.to(device)
    model.requires_grad_(False)
