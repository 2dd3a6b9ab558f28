"""Muon as Algorithm 1 of the report (2.4): momentum, orthogonalised per matrix, rescaled to AdamW's update size.

Legend: m columns, P parameter rows.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from dsv4.kernels.muon import Matrix, MuonRule, step_matrices
from dsv4.kernels.newton_schulz import HYBRID, Coefficients

PRODUCTS = {"int16": torch.int16, "bf16": torch.bfloat16, "fp32": torch.float32}  # settings of recipes
UPDATE_RMS = 0.18  # report's gamma: size of an update's entries before the learning rate


class Muon(torch.optim.Optimizer):
    """`dsv4.kernels.muon` over the parameters of a model.

    Every parameter is one matrix, a stack of matrices in its leading dimensions, or several matrices that are stored
    below one another: a group's `rows` lists their heights, () means the whole height. The momentum has no (1 - mu)
    factor. State: "momentum" per parameter.

    nesterov=False orthogonalises M itself. steps: coefficients of eq. 28. dtype: what Newton-Schulz multiplies in.
    Parameters without a gradient are left alone. Raises ValueError for settings out of range, a parameter with fewer
    than two dimensions, and rows that do not add up.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2.7e-4,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        rms: float = UPDATE_RMS,
        nesterov: bool = True,
        steps: Sequence[Coefficients] = HYBRID,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("rms", rms)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self._steps, self._dtype = tuple(steps), dtype
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "rms": rms, "nesterov": nesterov}
        super().__init__(params, {**defaults, "rows": ()})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch, and the shapes are checked."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for p in group["params"]:
            if p.dim() < 2:
                raise ValueError(f"Muon needs matrices, got a parameter of shape {list(p.shape)}")
            if group["rows"] and sum(group["rows"]) != p.shape[-2]:
                raise ValueError(f"rows {group['rows']} must add up to the height of {list(p.shape)}")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step_group(group, params)
        return loss

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        for p in params:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum"] for p in params]
        rule = MuonRule(
            lr=group["lr"],
            momentum=group["momentum"],
            decay=group["weight_decay"],
            rms=group["rms"],
            nesterov=group["nesterov"],
            steps=self._steps,
            dtype=self._dtype,
        )
        pieces: list[Matrix] = []
        for tensors in zip(params, momenta, grads, strict=True):
            pieces += zip(*(matrices(t, group["rows"]) for t in tensors), strict=True)
        step_matrices(pieces, rule)


def matrices(x: Tensor, rows: Sequence[int]) -> list[Tensor]:
    """Views of the independent matrices in x [..., P, m]: leading dimensions apart, then cut by heights."""
    found = []
    for matrix_Pm in x.flatten(0, -3) if x.dim() > 2 else [x]:
        found += matrix_Pm.split(list(rows)) if rows else [matrix_Pm]
    return found
