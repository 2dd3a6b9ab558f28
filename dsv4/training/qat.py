"""Quantisation-aware training for the released formats (report 5.2.1): weights, cache rows and activations go through
their FP4 and FP8 forms, gradients go straight to the fp32 masters.

The released layout keeps experts in FP4 (1 x 32), dense linears in FP8 (128 x 128), some matrices in bf16. The report's
way for an expert, fp32 -> FP4 -> FP8 -> product, gives the values of the FP4 step, because FP4 -> FP8 loses nothing.
"""

from collections.abc import Callable, Container, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from dsv4.checkpoint.names import RELEASE, Layout, stored
from dsv4.checkpoint.quantize import round_trip
from dsv4.kernels import quant
from dsv4.model.layers import KernelModule, Linear, Numerics, straight_through
from dsv4.model.transformer import Transformer
from dsv4.parameters import Parameter, parameter_table


def released_value(parameter: Parameter, value: Tensor, layout: Layout = RELEASE) -> Tensor:
    """The value that a reader of the layout gets for a float parameter, in fp32, of the same shape."""
    return round_trip(parameter, value, layout)


class FakeQuantised:
    """While entered, the model computes with the values that the layout will store. Outside it has no effect.

        with FakeQuantised(model):
            compute_loss(model, batch).total.backward()   # p.grad belongs to the fp32 values
        optimizers.step()

    Weights are cast once per entry, so one entry should span all micro-batches of a step. Gradients of a cast are those
    of the identity. cache: key-value rows go through FP8 and the indexers' queries and keys through Hadamard and FP4,
    as when serving. activations: inputs of quantised linears go through FP8 blocks of 128 columns. masters: fp32 values
    by name to cast from, where the model itself holds rounded ones. `dsv4.distributed.qat` is for matrices that
    ranks share. names: the parameters that are cast, with the inputs of their linears; None = all. Raises
    CheckpointError for a weight that the layout cannot hold, on construction if its shape is the reason.
    """

    def __init__(
        self,
        model: Transformer,
        layout: Layout = RELEASE,
        *,
        cache: bool = True,
        activations: bool = True,
        masters: Mapping[str, Tensor] | None = None,
        names: Container[str] | None = None,
    ) -> None:
        self.model, self.layout, self.cache, self.activations = model, layout, cache, activations
        self._masters = masters or {}
        known = parameter_table(model.config)
        # float32 in the layout means: as it is
        self._cast = [
            (known[name], p)
            for name, p in model.named_parameters()
            if (names is None or name in names) and stored(known[name], layout)[name].dtype != torch.float32
        ]
        self._kept: list[Tensor] = []
        self._numerics: list[tuple[KernelModule, Numerics]] = []

    @torch.no_grad()
    def __enter__(self) -> "FakeQuantised":
        if self._kept:
            raise RuntimeError("FakeQuantised is entered already")
        # all values first: a weight that cannot be cast must leave the model as it was
        values = [self.released(rule, self._masters.get(rule.name, p.data)).to(p.dtype) for rule, p in self._cast]
        self._kept = [self.kept(p) for _, p in self._cast]
        self._put(values)
        if self.cache:
            for module in self.model.modules():
                if isinstance(module, KernelModule):
                    self._numerics.append((module, module.numerics))
                    module.numerics = replace(module.numerics, simulate=True)
        if self.activations:
            self._cast_inputs(_through_fp8)
        return self

    @torch.no_grad()
    def __exit__(self, *error: object) -> None:
        self._put(self._kept)
        for module, numerics in self._numerics:
            module.numerics = numerics
        self._kept, self._numerics = [], []
        self._cast_inputs(None)

    def released(self, rule: Parameter, value: Tensor) -> Tensor:
        """The value that replaces a weight while entered, fp32."""
        return released_value(rule, value, self.layout)

    def kept(self, p: nn.Parameter) -> Tensor:
        """The weight's memory, which is restored at the end."""
        return p.data

    def put(self, p: nn.Parameter, value: Tensor) -> None:
        """Make the weight hold a value."""
        p.data = value

    def _put(self, values: list[Tensor]) -> None:
        for (_, p), value in zip(self._cast, values, strict=True):
            self.put(p, value)

    def _cast_inputs(self, cast: Callable[[Tensor], Tensor] | None) -> None:
        quantised = {
            rule.name.removesuffix(".weight")
            for rule, _ in self._cast
            if len(stored(rule, self.layout)) == 2 and not rule.float_inputs
        }
        for name, module in self.model.named_modules():
            if isinstance(module, Linear) and name in quantised:
                module.cast = cast


def _through_fp8(x: Tensor) -> Tensor:
    return straight_through(lambda value: quant.simulate_fp8(value, quant.FP8_BLOCK), x)
