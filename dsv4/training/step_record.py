"""The record of one training step: what a run yields, logs and prints."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class StepRecord:
    """The numbers of one step. tokens: seen before the step. losses: unweighted parts. spike: the reason why the run
    went back to step `back_to` instead of updating the model; None for an ordinary step. expert_load: by layer, what
    each expert got in equal shares; at measured steps only."""

    step: int
    tokens: int
    phase: str
    lr: float
    losses: dict[str, float]
    grad_norm: float
    max_violation: float
    seconds: float
    tokens_per_second: float
    mfu: float
    qat: bool
    anticipating: bool
    extra: dict[str, float] = field(default_factory=dict)
    spike: str | None = None
    back_to: int | None = None
    expert_load: dict[str, list[float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """One flat line of the log."""
        nested = ("losses", "extra", "expert_load")
        flat = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in nested}
        load = {"expert_load": self.expert_load} if self.expert_load else {}
        return {**flat, **self.losses, **self.extra, **load}

    def summary(self) -> str:
        """The most important numbers in one line of text."""
        losses = self.losses
        parts = [f"loss {losses['next']:.3f}"]
        parts += [f"{name} {losses[name]:.3f}" for name in ("mtp", "indexer") if name in losses]
        accepts = [f"{value:.2f}" for name, value in losses.items() if name.startswith("accept_")]
        parts += [f"accepted {' '.join(accepts)}"] if accepts else []
        if "recall_mass" in losses:
            parts.append(f"recall {losses['recall_mass']:.2f}")
        parts += [f"lr {self.lr:.2e}", f"norm {self.grad_norm:.2f}", f"load +{self.max_violation:.1f}"]
        return "  ".join([*parts, f"{self.tokens_per_second:,.0f} tok/s", f"MFU {self.mfu:.0%}"])
