"""A run that trains a draft head (DSpark) beside a model that stays as it is: the model with its head, and the trainer
with the head's loss."""

import random
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from dsv4.checkpoint import CheckpointReader, state_for
from dsv4.config import ModelConfig
from dsv4.model import accounting
from dsv4.model.init import init_weights
from dsv4.model.transformer import Transformer
from dsv4.training.anticipate import RoutedBatch
from dsv4.training.balance import ExpertLoads, add_load
from dsv4.training.batch import Totals
from dsv4.training.draft_fields import with_head
from dsv4.training.draft_loss import Anchors, DraftTotals, draft_loss
from dsv4.training.qat import FakeQuantised
from dsv4.training.recipe import Recipe
from dsv4.training.schedule import StepSettings
from dsv4.training.settings import DraftSettings
from dsv4.training.throughput import training_flops
from dsv4.training.trainer import Trainer


@torch.no_grad()
def draft_model(config: ModelConfig, draft: DraftSettings, reader: CheckpointReader, seed: int) -> Transformer:
    """The folder's model in fp32 with a head whose parameters alone can be trained: the folder's own, or a new one that
    starts as a copy of the last tapped layers."""
    made = with_head(config, draft)
    model = init_weights(Transformer(made), seed)
    own, old = model.state_dict(), config if config.dspark else config.without_prediction()
    for name, value in state_for(old, reader, "fp32", mtp=old.predicts):
        own[name].copy_(value)
    reader.release()
    if config.dspark is None:
        _warm_start(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name.startswith("mtp."))
    return model


def _warm_start(model: Transformer) -> None:
    """Each stage begins as the layer it stands for, without its compressor; the way in passes the last tapped layer on,
    the way out is the model's; the bias by the token before and the confidence begin at nothing."""
    head, stages = model.config.draft_head, model.stages
    sources = [head.target_layer_ids[max(i, -len(head.target_layer_ids))] for i in range(-len(stages), 0)]
    for stage, layer in zip(stages, sources, strict=True):
        there = {name: value for name, value in model.layers[layer].state_dict().items() if name != "ffn.gate.tid2eid"}
        for name, value in stage.state_dict().items():
            if name in there:
                value.copy_(there[name])
    first, last, dim = stages[0], stages[-1], model.config.hidden_size
    first.main_proj.weight.zero_()
    first.main_proj.weight[:, -dim:] = torch.eye(dim)
    last.norm.weight.copy_(model.norm.weight)
    for name in ("hc_head_fn", "hc_head_base", "hc_head_scale"):
        getattr(last, name).copy_(getattr(model, name))
    last.markov_head.markov_w2.weight.zero_()
    last.confidence_head.proj.weight.zero_()


class DraftTrainer(Trainer):
    """A run of `draft_loss`. Its records have the expected acceptance at each place of a block. After `qat_from` the
    head alone is cast: the model's weights are those of its folder."""

    def __init__(self, recipe: Recipe, *others: Any, **options: Any) -> None:
        super().__init__(recipe, *others, **options)
        if recipe.qat_from is not None:
            learned = {name for name, p in self.model.named_parameters() if p.requires_grad}
            self._fake = FakeQuantised(self.model, names=learned)

    @property
    def _draft(self) -> DraftSettings:
        assert self.recipe.draft is not None
        return self.recipe.draft

    def _accumulate(
        self, batches: list[RoutedBatch], settings: StepSettings, totals: Totals, queries: int
    ) -> tuple[dict[str, float], ExpertLoads]:
        draft, head = self._draft, self.model.config.draft_head
        generator = torch.Generator().manual_seed(random.Random(f"{self.recipe.seed} {self.step}").getrandbits(63))
        anchors = [Anchors.draw(part.batch, draft.anchors, head.block_size, generator) for part in batches]
        whole = DraftTotals.of(anchors, head.block_size, draft.decay)
        sums: dict[str, float] = {}
        load: ExpertLoads = {}
        with self._fake if settings.qat else nullcontext():
            for part, own in zip(batches, anchors, strict=True):
                if not own.rows:
                    continue
                recompute = self.recipe.run.recompute
                losses = draft_loss(self.model, part.batch, own, draft, whole, recompute=recompute)
                losses.total.backward()
                add_load(load, losses.load)
                for name, value in losses.parts.items():
                    sums[name] = sums.get(name, 0.0) + float(value)
        return sums or {"next": 0.0}, load  # a step without a token to learn changes nothing

    def _flops(self, lengths: Sequence[int], *, dense: bool) -> float:
        """The backbone runs forward only; the stages learn from the rows of the blocks, without their attention."""
        config, p = self.model.config, accounting.parameters(self.model.config)
        head = config.draft_head
        idle = (config.n_routed_experts - config.num_experts_per_tok) * 3 * config.hidden_size
        weights = p.mtp - idle * config.moe_intermediate_size * head.stages + p.head
        rows = self._draft.anchors * head.block_size
        return training_flops(config, lengths, dense=dense) / 3 + 6 * weights * rows


def head_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The draft head's part of a model's weights."""
    return {name: value for name, value in weights.items() if name.startswith("mtp.")}
