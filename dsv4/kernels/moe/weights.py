"""The stored weights of a layer's experts, gathered once.

Legend: E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import Tensor


class EqualTensors(Sequence[Tensor]):
    """Contiguous tensors of one type and shape that lie in buffers of bytes on the CPU. A tensor is made when it is
    asked for, so ten thousand cost no more than their addresses."""

    def __init__(
        self,
        buffers: Sequence[Tensor],
        begins: Sequence[int],
        dtype: torch.dtype,
        shape: tuple[int, ...],
        last: Tensor | None = None,
    ) -> None:
        """Entry e begins at byte begins[e] of buffers[e]; last: one more entry, of any type and shape."""
        self._buffers, self._begins, self._last = buffers, begins, last
        self._dtype, self._shape = dtype, shape
        self._bytes = dtype.itemsize * torch.Size(shape).numel()

    def followed_by(self, last: Tensor) -> "EqualTensors":
        """The same with one more entry."""
        return EqualTensors(self._buffers, self._begins, self._dtype, self._shape, last)

    def addresses(self) -> list[int]:
        """Where each entry begins in memory."""
        start = {id(buffer): buffer.data_ptr() for buffer in self._buffers}
        found = [start[id(buffer)] + begin for buffer, begin in zip(self._buffers, self._begins, strict=True)]
        return found if self._last is None else [*found, self._last.data_ptr()]

    def __len__(self) -> int:
        return len(self._begins) + (self._last is not None)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        if self._last is not None and index == len(self._begins):
            return self._last
        begin = self._begins[index]
        return self._buffers[index][begin : begin + self._bytes].view(self._dtype).view(self._shape)


@dataclass(eq=False, slots=True)
class ExpertWeights:
    """w1 (gate) and w3 (up) [F, D], w2 (down) [D, F] of every expert, as `matmul.linear` takes them, with their scales.

    shared: the last expert of each list is the shared one: every token goes through it, with weight 1, after the routed
    ones. limit: clamp of the SwiGLU, 0 for none. It keeps addresses: build a new one when a tensor was replaced.
    """

    w1: Sequence[Tensor]
    w2: Sequence[Tensor]
    w3: Sequence[Tensor]
    s1: Sequence[Tensor | None]
    s2: Sequence[Tensor | None]
    s3: Sequence[Tensor | None]
    limit: float = 0.0
    shared: bool = False
    native: dict[str, Any] = field(default_factory=dict, init=False, repr=False)  # what implementations keep

    def __post_init__(self) -> None:
        lengths = {len(part) for part in (self.w1, self.w2, self.w3, self.s1, self.s2, self.s3)}
        if len(lengths) != 1 or min(lengths) <= self.shared:
            raise ValueError(f"every list needs an entry per expert, got lengths {sorted(lengths)}")

    def largest_expert(self) -> int:
        """Bytes of the largest routed expert as it is stored."""
        parts = (self.w1, self.w2, self.w3, self.s1, self.s2, self.s3)
        same = all(isinstance(part, EqualTensors) for part in parts)
        return max(sum(_bytes(part[e]) for part in parts) for e in range(1 if same else self.routed))

    def memory(self, expert: int) -> list[tuple[int, int]]:
        """Address and bytes of each matrix and scale of an expert that lies in one piece."""
        parts = (self.w1, self.s1, self.w2, self.s2, self.w3, self.s3)
        tensors = (part[expert] for part in parts)
        return [
            (tensor.data_ptr(), _bytes(tensor)) for tensor in tensors if tensor is not None and tensor.is_contiguous()
        ]

    @property
    def routed(self) -> int:
        """Number of experts that ids may name."""
        return len(self.w1) - self.shared


def _bytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()
