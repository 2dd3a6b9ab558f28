"""What `dsv4 bench kernels` measures: each kernel beside a yardstick, in turns, so that both meet the same machine.

GEMV reads weights once, so its yardstick is the rate at which a plain sum reads memory; everything else is held against
torch's own fp32 matrix product. M rows, K columns, N output rows.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dsv4.kernels import quant
from dsv4.kernels.indexer import index_topk
from dsv4.kernels.matmul import linear
from dsv4.kernels.moe import ExpertWeights, clamped_swiglu, expert_mlp, run_experts
from dsv4.kernels.sparse_attention import ChosenEntries, KeySet, PageTable, sparse_attention

WIDTH = 4096
WEIGHTS = 1 << 29  # bytes that a GEMV run reads: far more than any cache holds
TRIES = 5
Weights = list[tuple[Tensor, Tensor | None]]


@dataclass(frozen=True, slots=True)
class Rate:
    """One measured kernel: its rate, the yardstick's, and their ratio. unit: GB/s read or GFLOP/s done."""

    kernel: str
    rate: float
    yardstick: float
    unit: str

    @property
    def ratio(self) -> float:
        return self.rate / self.yardstick

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio}


@dataclass(frozen=True, slots=True)
class Timed:
    """Something to time: `run` does `work` units of it: bytes read for GB/s, operations for GFLOP/s, layers."""

    run: Callable[[], object]
    work: float
    unit: str = "GFLOP/s"

    def rate(self) -> float:
        """Of one run."""
        start = time.perf_counter()
        self.run()
        return self.work / (time.perf_counter() - start) / (1 if self.unit == "layers/s" else 1e9)


def in_turns(rounds: int, *rates: Callable[[], float]) -> list[float]:
    """The largest of `rounds` measurements of each, one of each in every round.

    Clocks, neighbours and memory change over minutes: what is to be compared is measured side by side.
    """
    found = [[rate() for rate in rates] for _ in range(rounds)]
    return [max(column) for column in zip(*found, strict=True)]


def beside(kernel: str, job: Timed, yardstick: Timed) -> Rate:
    """A kernel and its yardstick, measured in turns after a round to warm up."""
    assert job.unit == yardstick.unit
    job.run()
    yardstick.run()
    own, other = in_turns(TRIES, job.rate, yardstick.rate)
    return Rate(kernel, own, other, job.unit)


def weight_of(form: str, rows: int, columns: int) -> tuple[Tensor, Tensor | None]:
    """A random weight in a storage format, and its scale."""
    w_NK = torch.randn(rows, columns) / columns**0.5
    if form == "fp8":
        return quant.quantize_fp8_weight(w_NK)
    if form == "fp4":
        return quant.quantize_fp4_weight(w_NK)
    return w_NK.to({"fp32": torch.float32, "bf16": torch.bfloat16}[form]), None


def size_of(weight: tuple[Tensor, Tensor | None]) -> int:
    return sum(t.numel() * t.element_size() for t in weight if t is not None)


def read_job() -> Timed:
    """A plain sum over fp32: the rate at which memory is read."""
    x = torch.ones(WEIGHTS // 4)
    return Timed(x.sum, WEIGHTS, "GB/s")


def matmul_job(rows: int) -> Timed:
    """torch's fp32 product of `rows` rows with a square weight."""
    x, w = torch.randn(rows, WIDTH), torch.randn(WIDTH, WIDTH)
    return Timed(lambda: x @ w, 2 * rows * WIDTH * WIDTH)


def every_product(x: Tensor, weights: Weights) -> None:
    for weight, scale in weights:
        linear(x, weight, scale)


def gemv() -> Iterator[Rate]:
    read = read_job()
    for form in ("fp32", "bf16", "fp8", "fp4"):
        one = weight_of(form, WIDTH, WIDTH)
        copies = max(1, WEIGHTS // size_of(one))
        weights = [(one[0].clone(), None if one[1] is None else one[1].clone()) for _ in range(copies)]
        for rows in (1, 4):
            x = torch.randn(rows, WIDTH)
            job = Timed(partial(every_product, x, weights), copies * size_of(one), "GB/s")
            yield beside(f"gemv {form}, {rows} rows", job, read)


def gemm() -> Iterator[Rate]:
    for rows in (16, 64, 512):
        yardstick = matmul_job(rows)
        for form in ("fp32", "bf16", "fp8", "fp4"):
            weight, scale = weight_of(form, WIDTH, WIDTH)
            x = torch.randn(rows, WIDTH)
            job = Timed(lambda x=x, weight=weight, scale=scale: linear(x, weight, scale), 2 * rows * WIDTH**2)
            yield beside(f"gemm {form}, {rows} rows", job, yardstick)


def moe(experts: int = 64, inner: int = 1024, chosen: int = 6) -> Iterator[Rate]:
    """A layer of fp4 experts; yardstick: torch's fp32 product at 512 rows."""
    dim, yardstick = 2048, matmul_job(512)
    made = [[weight_of("fp4", *shape) for _ in range(experts)] for shape in ((inner, dim), (dim, inner), (inner, dim))]
    weights = ExpertWeights(*([w for w, _ in m] for m in made), *([s for _, s in m] for m in made), limit=10.0)
    for rows in (1, 8, 64, 256):
        x, ids = torch.randn(rows, dim), torch.stack([torch.randperm(experts)[:chosen] for _ in range(rows)])
        share = torch.rand(rows, chosen)
        run = partial(expert_mlp, x, ids, share, weights)
        yield beside(f"moe fp4, {rows} tokens", Timed(run, 6 * rows * chosen * dim * inner), yardstick)


def flash_layer(experts: int = 32, dim: int = 4096, inner: int = 2048, chosen: int = 6) -> Iterator[Rate]:
    """Routed experts of one Flash layer in fp4, 32 of them, beside torch's products of the same weights in float32, one
    expert after the other. Layers per second."""
    shapes = ((inner, dim), (dim, inner), (inner, dim))
    one = [weight_of("fp4", *shape) for shape in shapes]
    made = [[tuple(t.clone() for t in w if t is not None) for _ in range(experts)] for w in one]
    weights = ExpertWeights(*([w[0] for w in m] for m in made), *([w[1] for w in m] for m in made), limit=10.0)
    plain = [[torch.randn(shape) / shape[1] ** 0.5 for _ in range(experts)] for shape in shapes]

    def run(expert: int, x_nD: Tensor, share_n1: Tensor) -> Tensor:
        w1, w2, w3 = (part[expert] for part in plain)
        return (clamped_swiglu(x_nD @ w1.T, x_nD @ w3.T, 10.0) * share_n1) @ w2.T

    for rows in (1, 8, 64, 256):
        x, ids = torch.randn(rows, dim), torch.stack([torch.randperm(experts)[:chosen] for _ in range(rows)])
        share = torch.rand(rows, chosen)
        ours = Timed(partial(expert_mlp, x, ids, share, weights), 1, "layers/s")
        torchs = Timed(partial(run_experts, x, ids, share, experts, run), 1, "layers/s")
        yield beside(f"flash moe layer, {rows} tokens", ours, torchs)


def indexer(entries: int = 262_144, heads: int = 64, dim: int = 128) -> Iterator[Rate]:
    """One query over all entries, top 512; yardstick: torch's fp32 product at 512 rows."""
    keys, q, w = torch.randn(entries, dim), torch.randn(1, heads, dim), torch.rand(1, heads)
    pages = PageTable(torch.zeros(1, 1, dtype=torch.int64), entries, torch.zeros(1, dtype=torch.int64))
    seen = torch.tensor([entries])
    job = Timed(lambda: index_topk(q, w, keys, pages, seen, entries, 512, runs=(0, 1)), 2 * entries * heads * dim)
    yield beside(f"indexer, {entries:,} entries", job, matmul_job(512))


def attention(heads: int = 64, dim: int = 512, chosen: int = 512) -> Iterator[Rate]:
    """One query over its window and its chosen entries, and 128 neighbouring queries of a prefill."""
    yardstick = matmul_job(512)
    entries, sink = torch.randn(16384, dim), torch.zeros(heads)
    for rows in (1, 128):
        q, window = torch.randn(rows, heads, dim), torch.randn(127 + rows, dim)
        first = torch.arange(rows)
        chosen_TK = torch.stack([torch.randperm(16384)[:chosen].sort().values for _ in range(rows)])
        keys = KeySet(torch.stack([first, first + 128], dim=1), (0, rows), ChosenEntries(chosen_TK))
        run = partial(sparse_attention, q, window, entries, keys, sink, scale=dim**-0.5)
        job = Timed(run, 4 * rows * heads * dim * (128 + chosen))
        yield beside(f"attention, {rows} queries of {128 + chosen} keys", job, yardstick)


@torch.inference_mode()
def every_rate() -> Iterator[Rate]:
    """All of them, one by one."""
    for part in (gemv, gemm, moe, flash_layer, indexer, attention):
        yield from part()
