"""How much a conversion changes weights that it quantises anew."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class _Change:
    weights: int = 0
    exact: int = 0
    squared_error: float = 0.0
    squared_size: float = 0.0


@dataclass(slots=True)
class Rounding:
    """Counts weights by the form they had, and sums what rounding changed."""

    changes: dict[str, _Change] = field(default_factory=dict)

    def add(self, form: str, before: Tensor, after: Tensor) -> None:
        """Count one weight: its float32 values before and after."""
        error = float(torch.linalg.vector_norm(after - before)) ** 2
        change = self.changes.setdefault(form, _Change())
        change.weights += 1
        change.exact += error == 0
        change.squared_error += error
        change.squared_size += float(torch.linalg.vector_norm(before)) ** 2

    def sentences(self) -> list[str]:
        """One sentence for each form: how many weights, how many exact, and the relative error (root of the squared
        sums)."""
        found = []
        for form, change in self.changes.items():
            text = f"{change.weights:,} weights stored as {form}: {change.exact:,} kept exactly"
            if change.exact < change.weights:
                error = (change.squared_error / change.squared_size) ** 0.5 if change.squared_size else 0.0
                text += f", the others rounded; relative error {error:.2%} over all"
            found.append(text)
        return found
