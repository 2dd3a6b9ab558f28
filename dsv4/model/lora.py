"""Low-rank adapters beside linear layers (LoRA): y = W x + alpha / rank * B A x, with W as it is stored.

Legend: T tokens, K input columns, N output rows, r rank.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dsv4.kernels import matmul
from dsv4.model.layers import KernelModule, Linear

_MIDDLE = ".adapter."


class LowRankAdapter(KernelModule):
    """What is added to a linear's output: factor * up (down x). Both matrices are float32, whatever the layer holds.

    down [r, K], up [N, r]. A new one adds nothing: up is zero, and down is drawn as PEFT draws it.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.down = nn.Parameter(torch.empty(rank, inputs))
        self.up = nn.Parameter(torch.zeros(outputs, rank))

    def draw(self, generator: torch.Generator) -> None:
        """New random values, as `kaiming_uniform_(a=sqrt(5))`: uniform within 1 / sqrt(K)."""
        bound = 1 / math.sqrt(self.down.shape[1])
        with torch.no_grad():
            self.down.copy_(torch.rand(self.down.shape, generator=generator) * (2 * bound) - bound)
            self.up.zero_()

    def forward(self, x_TK: Tensor, rows: slice = slice(None)) -> Tensor:
        """What is to be added, float32; `rows`: of those output rows alone (one group of a grouped linear)."""
        low_Tr = matmul.linear(x_TK.to(torch.float32).contiguous(), self.down, impl=self.impl)
        return matmul.linear(low_Tr, self.up[rows].contiguous(), impl=self.impl) * self.factor

    def change(self) -> Tensor:
        """What the adapter adds to the weight, [N, K] float32."""
        return self.up.detach() @ self.down.detach() * self.factor


def attach_adapter(model: nn.Module, layer: str, adapter: LowRankAdapter) -> None:
    """Put an adapter beside the linear called `layer`. Raises ValueError for another module, or other sizes."""
    try:
        module = model.get_submodule(layer)
    except AttributeError:
        raise ValueError(f"the model has no layer {layer!r}") from None
    if not isinstance(module, Linear):
        raise ValueError(f"{layer}: adapters lie on linear layers, not on a {type(module).__name__}")
    sizes, wanted = (adapter.up.shape[0], adapter.down.shape[1]), (module.outputs, module.inputs)
    if sizes != wanted:
        raise ValueError(f"{layer}: an adapter of {sizes[1]} -> {sizes[0]} on a layer of {wanted[1]} -> {wanted[0]}")
    adapter.impl = module.impl
    module.adapter = adapter


def adapters_of(model: nn.Module) -> dict[str, LowRankAdapter]:
    """The adapters of a model by the name of their layer."""
    found = {name: module.adapter for name, module in model.named_modules() if isinstance(module, Linear)}
    return {name: adapter for name, adapter in found.items() if isinstance(adapter, LowRankAdapter)}


def merge_adapters(model: nn.Module) -> None:
    """Add what the adapters change to float weights, and take these adapters away; those on quantised weights stay."""
    for name, adapter in adapters_of(model).items():
        layer = model.get_submodule(name)
        assert isinstance(layer, Linear)
        if layer.scale is None:
            merged = (layer.weight.detach().to(torch.float32) + adapter.change()).to(layer.weight.dtype)
            layer.weight = nn.Parameter(merged, requires_grad=layer.weight.requires_grad)
            layer.adapter = None


def layer_of(name: str) -> str | None:
    """The layer of an adapter's parameter (`layers.0.attn.wq_a.adapter.up`); None for another name."""
    layer, middle, _ = name.rpartition(_MIDDLE)
    return layer if middle else None


def learned_state(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: the adapters where there are any, else everything."""
    state: Mapping[str, Tensor] = model.state_dict()
    return {name: value for name, value in state.items() if layer_of(name)} or dict(state)


def load_learned_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what `learned_state` gave. Raises ValueError for other names."""
    own = learned_state(model)
    if own.keys() != state.keys():
        name = min(own.keys() ^ state.keys())
        raise ValueError(f"the model and the state do not have the same parameters: {name}")
    model.load_state_dict(state, strict=False)
