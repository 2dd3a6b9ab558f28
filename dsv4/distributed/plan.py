"""Memory per rank and bytes sent by a training run on many ranks, as arithmetic. No tensors are made.

    python -m dsv4.distributed.plan dsv4/configs/flash.json --fsdp 8 --expert 256 --length 4096 --batch 75497472

It counts what this package holds and sends, in bf16 with fp32 masters, with blocks recomputed in the backward pass.
Activations inside a block are an estimate; everything else follows from shapes.
"""

import argparse
from collections import Counter
from dataclasses import dataclass, fields
from math import ceil

from dsv4.config import AttentionKind, ModelConfig, tail_rows
from dsv4.distributed.context_parallel import reach
from dsv4.distributed.optimizers import MESSAGE
from dsv4.model import accounting
from dsv4.parameters import Parameter, Role, Storage, parameter_table
from dsv4.training.settings import AXES, Scale

BF16, FP32 = 2, 4


@dataclass(frozen=True, slots=True)
class WeightCounts:
    """Numbers in the whole model, prediction block included, by how they are held. cut16, cut32: dense matrices along
    fsdp (cut32: the head). whole32: fp32 matrices on every rank (compressors, routers, hyper-connections) and vectors.
    vocabulary: those of cut16 and cut32 that AdamW moves."""

    cut16: int
    cut32: int
    whole32: int
    experts: int
    vocabulary: int

    @property
    def total(self) -> int:
        return self.cut16 + self.cut32 + self.whole32 + self.experts


def weights(config: ModelConfig) -> WeightCounts:
    """Every number once; adds up to `accounting.parameters`, total and prediction block."""
    held: Counter[str] = Counter()
    for parameter in parameter_table(config).values():
        if parameter.storage is Storage.TABLE:
            continue
        held[_place(parameter)] += parameter.numbers
        if parameter.role in (Role.EMBEDDING, Role.HEAD):
            held["vocabulary"] += parameter.numbers
    return WeightCounts(**held)


def _place(parameter: Parameter) -> str:
    """The field of `WeightCounts` that counts a parameter, as `fsdp.stays_whole` decides for bf16 weights."""
    if parameter.role is Role.EXPERT:
        return "experts"
    if parameter.role is Role.HEAD:
        return "cut32"
    return "cut16" if parameter.storage in (Storage.LINEAR, Storage.PLAIN) else "whole32"


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes of one rank. scratch: where owners make updates. block: gathered weights and gradients of a block and the
    head. activations: kept block inputs and, estimated, the inside of the block being recomputed. messages: what the
    optimiser's exchange holds at once."""

    weights: float
    masters: float
    gradients: float
    optimizer: float
    scratch: float
    block: float
    activations: float
    messages: float

    @property
    def total(self) -> float:
        return sum(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True, slots=True)
class RankTraffic:
    """Bytes one rank sends in a step. shards: gathering weights and reducing gradients along fsdp. experts: rows to
    experts and back. context: halo and entries. copies: adding gradients of copies. muon: gradients to owners and
    updates back."""

    shards: float
    experts: float
    context: float
    copies: float
    muon: float

    @property
    def total(self) -> float:
        return sum(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True, slots=True)
class ScalePlan:
    """One layout. tokens: of one rank in one micro-batch (a sequence over its context ranks). micro: micro-batches a
    rank makes in a step. batch: tokens of a step, at least what was asked for."""

    tokens: int
    micro: int
    batch: int
    memory: RankMemory
    traffic: RankTraffic


def plan(config: ModelConfig, scale: Scale, *, length: int, batch: int) -> ScalePlan:
    """Memory and traffic for sequences of `length` tokens and steps of `batch` tokens.

    Raises ValueError where the layout is not possible.
    """
    if config.n_routed_experts % scale.expert:
        raise ValueError(f"scale.expert must divide n_routed_experts {config.n_routed_experts}, got {scale.expert}")
    if length < scale.context * (reach(config) if scale.context > 1 else 1):
        raise ValueError(f"length must be at least {scale.context * reach(config)} for scale.context, got {length}")
    samples = scale.data * scale.fsdp * scale.expert
    micro = ceil(batch / length / samples)
    tokens = ceil(length / scale.context)
    memory, traffic = _memory(config, scale, tokens), _traffic(config, scale, tokens, micro)
    return ScalePlan(tokens, micro, micro * samples * length, memory, traffic)


def _memory(c: ModelConfig, scale: Scale, tokens: int) -> RankMemory:
    w, block = weights(c), _block(c)
    cut16, cut32, experts = w.cut16 / scale.fsdp, w.cut32 / scale.fsdp, w.experts / scale.expert
    held = cut16 + cut32 + w.whole32 + experts
    # Muon: one fp32 momentum at the owner; AdamW: two wherever a part is held
    owned = (w.cut16 + w.cut32 - w.vocabulary) / scale.fsdp + w.whole32 / scale.world
    owned += w.experts / (scale.expert * scale.data * scale.fsdp * scale.context)
    layers = c.num_hidden_layers + c.num_nextn_predict_layers
    streams = c.hc_mult * c.hidden_size
    wide = c.num_attention_heads * c.head_dim
    # of the block being recomputed, with gradients: streams, q and output, rows at experts with their inner values
    inside = 6 * streams + 6 * wide + c.num_experts_per_tok * (4 * c.hidden_size + 6 * c.moe_intermediate_size)
    return RankMemory(
        weights=BF16 * (cut16 + experts) + FP32 * (cut32 + w.whole32),
        masters=FP32 * (cut16 + experts),
        gradients=FP32 * held,
        optimizer=FP32 * owned + 2 * FP32 * w.vocabulary / scale.fsdp,
        scratch=FP32 * owned,
        block=0.0 if scale.fsdp == 1 else 2 * BF16 * block + 2 * FP32 * w.cut32,
        activations=BF16 * tokens * (layers * streams + inside),
        messages=3.0 * FP32 * min(MESSAGE, max(cut16, experts)) if scale.world > 1 else 0.0,
    )


def _block(c: ModelConfig) -> float:
    """Cut weights of one block: attention and the shared expert."""
    p = accounting.parameters(c)
    return (p.attention + p.shared_experts) / c.num_hidden_layers


def _others(ranks: int) -> float:
    """The share of something that is spread evenly over `ranks` which is not here."""
    return (ranks - 1) / ranks


def _traffic(c: ModelConfig, scale: Scale, tokens: int, micro: int) -> RankTraffic:
    w = weights(c)
    layers = c.num_hidden_layers + c.num_nextn_predict_layers
    cut_bytes = BF16 * w.cut16 + FP32 * w.cut32
    # gathered in the forward and again in the backward pass, gradients reduced once
    shards = micro * 3 * _others(scale.fsdp) * cut_bytes
    # a row there in bf16 and back in fp32, forward and recomputed; backward the same the other way
    rows = tokens * c.num_experts_per_tok * layers
    experts = micro * 3 * _others(scale.expert) * rows * c.hidden_size * (BF16 + FP32)
    context = micro * 3 * _context_bytes(c, scale, tokens)
    copies_dense, copies_experts = scale.world // scale.fsdp, scale.world // scale.expert
    copies = (
        2
        * FP32
        * (
            _others(copies_dense) * (w.cut16 + w.cut32) / scale.fsdp
            + _others(scale.world) * w.whole32
            + _others(copies_experts) * w.experts / scale.expert
        )
    )
    muon = FP32 * (
        2 * _others(scale.fsdp) * (w.cut16 + w.cut32 - w.vocabulary) / scale.fsdp
        + _others(scale.world) * w.whole32
        + _others(copies_experts) * w.experts / scale.expert
    )
    return RankTraffic(shards, experts, context, copies, muon)


def _context_bytes(c: ModelConfig, scale: Scale, tokens: int) -> float:
    """One pass: window and tail rows to the neighbour, finished entries to all others."""
    if scale.context == 1:
        return 0.0
    sent = 0.0
    for spec in (*c.layers, *c.mtp_layers):
        sent += (c.sliding_window - 1) * c.head_dim * BF16
        if not spec.ratio:
            continue
        sizes = (c.head_dim, c.index_head_dim) if spec.kind is AttentionKind.CSA else (c.head_dim,)
        # projections and scores, fp32
        sent += sum((tail_rows(spec.ratio) - 1) * 2 * spec.width(size) * FP32 for size in sizes)
        sent += (scale.context - 1) * tokens / spec.ratio * sum(sizes) * BF16
    return sent


def table(config: ModelConfig, scale: Scale, made: ScalePlan) -> str:
    """A plan as text."""
    axes = " x ".join(f"{name} {size}" for name, size in zip(AXES, scale.sizes, strict=True))
    lines = [f"{scale.world:,} ranks: {axes}"]
    w = weights(config)
    lines.append(f"{w.total:,} parameters, {w.experts:,} of them in routed experts")
    lines.append(f"{made.tokens:,} tokens a rank and micro-batch, {made.micro} a step; {made.batch:,} tokens a step")
    for title, part in (("memory, GB a rank", made.memory), ("sent, GB a rank and step", made.traffic)):
        lines.append(title)
        lines += [f"  {f.name:<12}{getattr(part, f.name) / 1e9:10.2f}" for f in fields(part)]
        lines.append(f"  {'total':<12}{part.total / 1e9:10.2f}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Print a plan."""
    parser = argparse.ArgumentParser(description="memory and traffic of a training run on many ranks")
    parser.add_argument("config", help="config.json or a folder that has one")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a sequence")
    parser.add_argument("--batch", type=int, default=1 << 22, help="tokens of a step")
    for axis in AXES:
        parser.add_argument(f"--{axis}", type=int, default=1, help=f"ranks along {axis}")
    given = parser.parse_args(arguments)
    config = ModelConfig.from_file(given.config)
    scale = Scale(**{axis: getattr(given, axis) for axis in AXES})
    print(table(config, scale, plan(config, scale, length=given.length, batch=given.batch)))


if __name__ == "__main__":
    main()
