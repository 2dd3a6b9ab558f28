"""Mixed precision: the model computes in bfloat16, the optimisers move fp32 masters (report 3.4; V3's recipe).

Without masters, updates smaller than half a step of bfloat16 (0.4 % of a weight) would vanish.
"""

from collections.abc import Iterator

import torch
from torch import nn

from dsv4.model.transformer import Transformer


class Masters:
    """fp32 copies of a model's low-precision parameters; parameters that are fp32 already, and those that no gradient
    moves, stand for themselves.

        masters = Masters(model)
        optimizers = make_optimizers(model.config, masters.named_parameters())
        loss.backward(); masters.collect()      # after each micro-batch
        optimizers.step(); masters.publish()    # once per step

    Gradients of micro-batches are added in fp32. The masters start from the model's values: give wider ones with
    `load_state_dict` where they exist. A checkpoint saves `state_dict` in place of the model's parameters.
    """

    def __init__(self, model: Transformer) -> None:
        self._pairs = [
            (name, p, p if p.dtype == torch.float32 or not p.requires_grad else nn.Parameter(p.detach().float()))
            for name, p in model.named_parameters()
        ]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name, master) in the model's order: what optimisers take, and what `FakeQuantised(masters=...)` casts."""
        return ((name, master) for name, _, master in self._pairs)

    @torch.no_grad()
    def collect(self) -> None:
        """Add the model's gradients to the masters', and drop them."""
        for _, p, master in self._pairs:
            if master is p or p.grad is None:
                continue
            if master.grad is None:
                master.grad = p.grad.float()
            else:
                master.grad.add_(p.grad)
            p.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the model."""
        for _, p, master in self._pairs:
            if master is not p:
                p.copy_(master)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {name: master.detach() for name, _, master in self._pairs}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take fp32 values by name and publish them. Raises KeyError for a name that is missing."""
        for name, _, master in self._pairs:
            master.copy_(state[name])
        self.publish()
