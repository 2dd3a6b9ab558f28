"""The native kernels as torch sees them: schemas that are kept, shapes without data, names in graphs and profiles."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import dsv4.model.transformer  # noqa: F401  # every kernel is registered
from dsv4.kernels import native, quant
from dsv4.kernels.matmul import linear
from dsv4.kernels.norm import rms_norm

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not())
T, S, D, H, C = 5, 4, 32, 2, 32


def index_arguments() -> tuple[object, ...]:
    first, sequence = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(T, dtype=torch.int64)
    visible = torch.full((T,), 9)
    return torch.randn(T, H, C), torch.rand(T, H), torch.randn(16, C), first, sequence, 16, visible, 9, 3, [0, T]


def attention_arguments() -> tuple[object, ...]:
    window = torch.stack([torch.zeros(T, dtype=torch.int64), torch.arange(1, T + 1)], dim=1)
    chosen, sink = torch.tensor([[0, 3, -1]] * T), torch.randn(H)
    rows = torch.randn(T, C), torch.randn(6, C)
    return torch.randn(T, H, C), *rows, window, [0, T], None, None, None, 0, chosen, sink, 0.2, 0


ARGUMENTS: dict[str, Callable[[], tuple[object, ...]]] = {
    "linear": lambda: (torch.randn(T, 64), torch.randn(48, 64), None, True),
    "rms_norm": lambda: (torch.randn(T, D), torch.rand(D), 1e-6),
    "rope": lambda: (torch.randn(T, H, C), torch.randn(2, T, 8), False),
    "pool": lambda: (torch.randn(8, 2 * D), torch.randn(8, 2 * D), *torch.arange(16).view(2, 2, 4).remainder(8)),
    "hyper_enter": lambda: (
        torch.randn(T, S, D), torch.randn(24, S * D), torch.rand(3), torch.randn(24), 20, 1e-6, 1e-6,
    ),
    "hyper_collapse": lambda: (torch.randn(T, S, D), torch.randn(S, S * D), torch.rand(1), torch.randn(S), 1e-6, 1e-6),
    "hyper_combine": lambda: (torch.randn(T, D), torch.randn(T, S, D), torch.randn(T, S), torch.randn(T, S, S)),
    "simulate_fp8": lambda: (torch.randn(T, 200), 64),
    "simulate_fp4": lambda: (torch.randn(T, 64), 32),
    "index_topk": index_arguments,
    "sparse_attention": attention_arguments,
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_operator_keeps_its_schema_and_tells_its_shapes(name: str) -> None:
    operator = getattr(torch.ops.dsv4, name).default
    opcheck(operator, ARGUMENTS[name](), test_utils=("test_schema", "test_faketensor"))


class Part(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.scale = quant.quantize_fp8_weight(torch.randn(48, D))
        self.norm = torch.rand(D)

    def forward(self, x_TD: Tensor) -> Tensor:
        return linear(rms_norm(x_TD, self.norm, 1e-6), self.weight, self.scale)


@torch.no_grad()
def test_export_keeps_the_operators() -> None:
    part, x_TD = Part(), torch.randn(T, D)
    exported = torch.export.export(part, (x_TD,))
    called = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert called == ["dsv4.rms_norm.default", "dsv4.linear.default"]
    assert torch.equal(exported.module()(x_TD), part(x_TD))


@torch.no_grad()
def test_the_profiler_names_them() -> None:
    part, x_TD = Part(), torch.randn(T, D)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        part(x_TD)
    assert {"dsv4::linear", "dsv4::rms_norm"} <= {event.key for event in profile.key_averages()}
