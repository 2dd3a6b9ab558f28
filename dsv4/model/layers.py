"""The layers that all sections share: numerics, linear layers with a precision of their own, RMSNorm.

Legend: T tokens, D normalised features, K input columns, N output rows.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dsv4.config import Mode
from dsv4.kernels import matmul
from dsv4.kernels.norm import rms_norm


@dataclass(frozen=True, slots=True)
class Numerics:
    """How numbers are held between operations.

    activations: dtype of the residual streams and of plain linear layers.
    simulate: reproduce the release's quantised cache: key-value rows through fp8 (dims without RoPE, blocks of 64),
        indexer queries and keys through a Hadamard rotation and fp4.
    """

    activations: torch.dtype = torch.float32
    simulate: bool = False


FP32 = Numerics()
BF16 = Numerics(torch.bfloat16)
RELEASE = Numerics(torch.bfloat16, simulate=True)
MODES: dict[Mode, Numerics] = {"fp32": FP32, "bf16": BF16, "release": RELEASE}


class Changes:
    """Counts how often something was done to any layer. Code that caches the state of layers compares this count."""

    count = 0


class Counted(nn.Module):
    """A module that counts in `Changes` what is set, registered or deleted on it."""

    def __setattr__(self, name: str, value: Any) -> None:
        Changes.count += 1
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        Changes.count += 1
        super().__delattr__(name)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        Changes.count += 1
        super().add_module(name, module)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        Changes.count += 1
        super().register_parameter(name, param)

    def register_forward_hook(self, *arguments: Any, **named: Any) -> RemovableHandle:
        Changes.count += 1
        return super().register_forward_hook(*arguments, **named)

    def register_forward_pre_hook(self, *arguments: Any, **named: Any) -> RemovableHandle:
        Changes.count += 1
        return super().register_forward_pre_hook(*arguments, **named)


def walk(root: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """`root.named_modules(remove_duplicate=False)`, but experts that are tables stay tables
    (`dsv4.model.expert.StoredExperts`)."""
    yield name, root
    for key, child in vars(root)["_modules"].items():
        if child is not None:
            yield from walk(child, f"{name}.{key}" if name else key)


class LayerList(Counted, nn.ModuleList):
    """Layers in a row."""

    def insert(self, index: int, module: nn.Module) -> None:
        Changes.count += 1
        super().insert(index, module)


_WRITTEN: dict[type, dict[str, Any]] = {}  # of each layer class: its functions as they are written here


class KernelModule(Counted):
    """A module that calls kernels. `impl`: which implementation of them (None = best); Transformer sets it once."""

    impl: str | None = None
    numerics: Numerics = FP32

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _WRITTEN[cls] = _functions(cls)


def _functions(cls: type) -> dict[str, Any]:
    return {name: value for name, value in vars(cls).items() if callable(value)}


def classes_of(modules: Iterable[nn.Module]) -> list[type]:
    """The layer classes of some modules, with those they inherit from."""
    return [cls for cls in dict.fromkeys(c for m in modules for c in type(m).__mro__) if cls in _WRITTEN]


def class_patches() -> str | None:
    """Which function of this package's layer classes was replaced or added from outside; None = none."""
    for cls, written in _WRITTEN.items():
        now = _functions(cls)
        changed = next((name for name in {**written, **now} if now.get(name) is not written.get(name)), None)
        if changed is not None and cls.__module__.startswith("dsv4.model."):
            return f"{cls.__qualname__}.{changed} is replaced"
    return None


class Linear(KernelModule):
    """y = x W^T. The precision is a property of the weight: float, fp8 (e4m3, 128x128 scales) or packed fp4 (1x32).

    A quantised weight has a `scale` beside it; its inputs are quantised per 128 columns as in the release. dtype: what
    a float weight's product is computed in; the weight itself may be stored narrower (bfloat16 under float32).
    adapter: a module whose result is added (`dsv4.model.lora`).
    """

    adapter: "Callable[..., Tensor] | None"

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.inputs, self.outputs, self.dtype = inputs, outputs, dtype
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype))
        self.register_parameter("scale", None)
        self.cast: Callable[[Tensor], Tensor] | None = None  # training for a quantised release: what inputs go through
        self.register_module("adapter", None)

    def forward(self, x: Tensor) -> Tensor:
        given = x
        if self.cast is not None:
            x = self.cast(x)
        if self.scale is None:
            x = x.to(torch.promote_types(self.dtype, self.weight.dtype))
        y = matmul.linear(x, self.weight, self.scale, impl=self.impl)
        return y if self.adapter is None else (y + self.adapter(given)).to(y.dtype)

    def extra_repr(self) -> str:
        return f"{self.inputs} -> {self.outputs}, {str(self.weight.dtype).removeprefix('torch.')}"


class GroupedLinear(Linear):
    """A Linear whose inputs and outputs fall into groups: each group of inputs gives its own outputs. The release
    multiplies the dequantised weight here, so inputs are not quantised."""

    def __init__(self, groups: int, inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(inputs, groups * outputs, dtype)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """[T, G, inputs] -> [T, G * outputs]."""
        weights = self.weight.chunk(self.groups)
        scales = [None] * self.groups if self.scale is None else self.scale.chunk(self.groups)
        low = [
            matmul.linear(x_TK.contiguous(), weight_NK, scale, quantize_activations=False, impl=self.impl)
            for x_TK, weight_NK, scale in zip(x.to(self.dtype).unbind(1), weights, scales, strict=True)
        ]
        y = torch.cat(low, dim=1)
        if self.adapter is None:
            return y
        size = self.outputs // self.groups
        added = [self.adapter(x[:, g], slice(g * size, (g + 1) * size)) for g in range(self.groups)]
        return (y + torch.cat(added, dim=1)).to(y.dtype)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        return cast(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return grads[0], None


def straight_through(cast: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """cast(x) with the gradient of x, so that training can pass through a rounding (report 5.2.1)."""
    return _StraightThrough.apply(x, cast) if torch.is_grad_enabled() else cast(x)


def rms(x: Tensor, eps: float, impl: str | None = None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dim, in x's own dtype: the norm without weight on query heads."""
    return rms_norm(x, None, eps, impl)


class RMSNorm(KernelModule):
    """Weighted RMSNorm over the last dim; fp32 inside, one rounding to the input's dtype."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, self.impl)
