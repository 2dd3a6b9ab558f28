"""A Transformer and a CacheStore as the structs of the native step. The structs hold the addresses of their tensors; no
tensor is copied."""

import ctypes
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from dsv4.cache import CacheStore
from dsv4.cache.store import LayerStore
from dsv4.kernels import native
from dsv4.kernels.hyper_connection.native import MOST_STREAMS
from dsv4.kernels.matmul.native import BF16, F32, weight_kind
from dsv4.kernels.moe import ExpertWeights
from dsv4.kernels.moe.native import packed_layer
from dsv4.kernels.native.places import ThreadPlaces, node_of_expert
from dsv4.kernels.native.structs import (
    StepCompressor,
    StepConnection,
    StepDraft,
    StepExperts,
    StepLayer,
    StepLinear,
    StepModel,
    StepPlaces,
    StepStore,
    StepStoreLayer,
)
from dsv4.kernels.quant import FP8_BLOCK
from dsv4.kernels.rows import INDEX_BLOCK
from dsv4.model.attention.compressor import Compressor
from dsv4.model.attention.shared import Attention
from dsv4.model.block import Block
from dsv4.model.dspark import DraftStage
from dsv4.model.layers import Linear, RMSNorm
from dsv4.model.moe import MoE
from dsv4.model.mtp import MultiTokenPredictor
from dsv4.model.transformer import Transformer

_PLAIN_KINDS = {F32: torch.float32, BF16: torch.bfloat16}
_ROW_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2}  # RowKind of kernels/rows/rows.h


class UnfitError(ValueError):
    """The native step cannot run this model or store; the message has the reason."""


@dataclass(eq=False, slots=True)
class PackedStep:
    """The structs of some blocks and of their cache. Weights may change in place; after a tensor was replaced, `pack`
    must run again.

    ratios: of the blocks' compressors. predicts: the blocks are a prediction block, which starts from given streams.
    places: where the threads run; None: wherever the system puts them.
    """

    model: StepModel
    store: StepStore
    dtype: torch.dtype  # of the activations
    ratios: frozenset[int]
    predicts: bool
    tensors: list[object]  # kept alive: the structs hold their addresses only
    places: StepPlaces | None = None


def pack(
    model: Transformer,
    blocks: Sequence[Block],
    store: CacheStore,
    *,
    context: bool = False,
    counts: Mapping[int, Tensor] = MappingProxyType({}),
    places: ThreadPlaces | None = None,
) -> PackedStep:
    """The structs of some blocks: the layers of the backbone, the prediction block, or the stages of the draft head.
    context: a step of the backbone also writes the context rows of the draft head. counts: by layer, where the uses of
    its experts are counted. places: where the threads run. Raises UnfitError."""
    packer = _Packer(model, counts, places)
    packed_model = packer.model_struct(blocks)
    packed_store = packer.store_struct(store, [store.layers[block.spec.index] for block in blocks])
    if context:
        packed_model.draft = packer.draft_struct(store)
    ratios = frozenset(block.spec.ratio for block in blocks) - {0}
    predicts = isinstance(blocks[-1], MultiTokenPredictor)
    where = None if places is None else packer.places_struct(places)
    return PackedStep(packed_model, packed_store, packer.dtype, ratios, predicts, packer.tensors, where)


def readable(tensor: Tensor) -> bool:
    """Whether native code can read it in place."""
    return tensor.device.type == "cpu" and tensor.is_contiguous()


@dataclass(slots=True)
class _Packer:
    """Makes structs of modules, and checks each tensor whose address it stores."""

    model: Transformer
    counts: Mapping[int, Tensor]
    places: ThreadPlaces | None
    dtype: torch.dtype = field(init=False)
    tensors: list[object] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dtype = self.model.embed.weight.dtype
        c = self.model.config
        if not native.available():
            raise UnfitError(f"no native kernels: {native.why_not()}")
        if self.dtype not in _PLAIN_KINDS.values():
            raise UnfitError(f"activations must be float32 or bfloat16, not {self.dtype}")
        if c.hc_mult > MOST_STREAMS:
            raise UnfitError(f"at most {MOST_STREAMS} streams, not {c.hc_mult}")
        if self.model.numerics.simulate and c.index_head_dim % INDEX_BLOCK:
            raise UnfitError(
                f"the indexer's dim must be a multiple of {INDEX_BLOCK} to go through FP4, not {c.index_head_dim}"
            )

    def address(self, tensor: Tensor | None, dtypes: Sequence[torch.dtype], otherwise: str) -> int | None:
        """The address of a contiguous tensor of one of these types, null for None. Raises UnfitError(otherwise)."""
        if tensor is None:
            return None
        if tensor.dtype not in dtypes or not readable(tensor):
            raise UnfitError(otherwise)
        self.tensors.append(tensor)
        return tensor.data_ptr()

    def floats(self, *tensors: Tensor | None) -> list[int | None]:
        reason = "norms, connections, biases and sinks must be float32 on the CPU"
        return [self.address(tensor, (torch.float32,), reason) for tensor in tensors]

    def linear(self, layer: Linear) -> StepLinear:
        """A product whose input and output are activations."""
        weight, scale = layer.weight, layer.scale
        kind, reason = weight_kind(weight, scale), f"no native product for weights of {weight.dtype}"
        if kind is None:
            raise UnfitError(reason)
        if scale is None and weight.dtype != self.dtype:
            raise UnfitError(f"plain weights must have the activations' dtype {self.dtype}, not {weight.dtype}")
        addresses = [self.address(t, () if t is None else (t.dtype,), reason) for t in (weight, scale)]
        return StepLinear(*addresses, weight.shape[0], weight.shape[1] * (2 if weight.dtype == torch.int8 else 1), kind)

    def wide(self, weight: Tensor) -> StepLinear:
        """A product in float32; its matrix may be stored in bfloat16."""
        reason = "routers, compressors and the head must be float32 or bfloat16 on the CPU"
        address = self.address(weight, tuple(_PLAIN_KINDS.values()), reason)
        return StepLinear(address, None, *weight.shape, weight_kind(weight, None))

    def connection(self, owner: Block | Transformer, name: str, norm: RMSNorm) -> StepConnection:
        parts = (getattr(owner, f"hc_{name}_{part}") for part in ("fn", "scale", "base"))
        return StepConnection(*self.floats(*parts, norm.weight))

    def compressor(self, layer: Compressor) -> StepCompressor:
        if layer.wkv.scale is not None or layer.wgate.scale is not None:
            raise UnfitError("compressors must not be quantised")
        return StepCompressor(
            self.wide(layer.wkv.weight), self.wide(layer.wgate.weight), *self.floats(layer.ape, layer.norm.weight)
        )

    def numbers(self, values: Iterable[int]) -> int:
        """The address of an array of these numbers, which is kept."""
        kept = array("q", values)
        self.tensors.append(kept)
        return kept.buffer_info()[0]

    def experts(self, weights: ExpertWeights, layer: int) -> StepExperts:
        made = packed_layer(weights)
        if made is None or not weights.shared:
            raise UnfitError("no native product for these experts' formats")
        if any(_PLAIN_KINDS.get(kind, self.dtype) != self.dtype for kind in (made.kind, made.shared_kind)):
            raise UnfitError(f"plain experts must have the activations' dtype {self.dtype}")
        self.tensors.append(weights)
        near, places = None, self.places
        if places is not None and places.experts:
            near = self.numbers(node_of_expert(layer, e, places.nodes) for e in range(weights.routed))
        return StepExperts(*made.rows, made.inner, made.kind, made.shared_kind, near)

    def places_struct(self, places: ThreadPlaces) -> StepPlaces:
        cpus = self.numbers(cpu for allowed in places.cpus for cpu in allowed)
        first = self.numbers(accumulate(map(len, places.cpus), initial=0))
        return StepPlaces(cpus, first, self.numbers(places.near), len(places.near), places.nodes)

    def layer(self, block: Block) -> StepLayer:
        attention, mixture = block.attn, block.ffn
        if not isinstance(attention, Attention) or not isinstance(mixture, MoE):
            raise UnfitError("a block needs an attention and a mixture of experts")
        layer = StepLayer(ratio=block.spec.ratio, overlap=block.spec.overlap)
        layer.attention = self.connection(block, "attn", block.attn_norm)
        layer.mixture = self.connection(block, "ffn", block.ffn_norm)
        for name in ("q_a", "q_b", "kv", "o_a", "o_b"):
            setattr(layer, name, self.linear(getattr(attention, f"w{name}")))
        if (
            attention.wo_a.scale is not None
            and attention.wo_a.weight.shape[0] // self.model.config.o_groups % FP8_BLOCK
        ):
            raise UnfitError(f"a quantised first output projection needs groups of a multiple of {FP8_BLOCK} rows")
        layer.q_norm, layer.kv_norm, layer.sink = self.floats(
            attention.q_norm.weight, attention.kv_norm.weight, attention.attn_sink
        )
        gate = mixture.gate
        layer.router = self.wide(gate.weight)
        (layer.router_bias,) = self.floats(gate.bias)
        layer.router_table = self.address(gate.tid2eid, (torch.int64,), "tables of experts must be int64 on the CPU")
        layer.experts = self.experts(mixture.weights(), block.spec.index)
        count_E = self.counts.get(block.spec.index)
        if count_E is not None and len(count_E) == gate.weight.shape[0]:
            layer.used_E = self.address(count_E, (torch.int64,), "counts must be int64 on the CPU")
        if (compressor := getattr(attention, "compressor", None)) is not None:
            layer.main = self.compressor(compressor)
        if (indexer := getattr(attention, "indexer", None)) is not None:
            layer.index = self.compressor(indexer.compressor)
            layer.index_q, layer.index_weight = self.linear(indexer.wq_b), self.linear(indexer.weights_proj)
        return layer

    def model_struct(self, blocks: Sequence[Block]) -> StepModel:
        model, c, last = self.model, self.model.config, blocks[-1]
        owner = last if isinstance(last, MultiTokenPredictor | DraftStage) else model
        plain, long = self.floats(model.rotary.plain_P, model.rotary.long_P)
        made = StepModel(
            bf16=self.dtype == torch.bfloat16,
            simulate=model.numerics.simulate,
            layers=len(blocks),
            streams=c.hc_mult,
            dim=model.embed.weight.shape[1],
            vocabulary=model.embed.weight.shape[0],
            heads=c.num_attention_heads,
            head_dim=c.head_dim,
            pairs=model.rotary.long_P.shape[0],
            groups=c.o_groups,
            window=c.sliding_window,
            index_heads=c.index_n_heads,
            index_dim=c.index_head_dim,
            index_topk=c.index_topk,
            experts=blocks[0].ffn.gate.weight.shape[0],
            per_token=c.num_experts_per_tok,
            iterations=c.hc_sinkhorn_iters,
            norm_eps=c.rms_norm_eps,
            connection_eps=c.hc_eps,
            limit=c.swiglu_limit,
            expert_scale=c.routed_scaling_factor,
            attention_scale=c.head_dim**-0.5,
            index_scale=c.index_head_dim**-0.5 * c.index_n_heads**-0.5,
            plain_P=plain,
            long_P=long,
            embedding=self.address(model.embed.weight, (self.dtype,), "the embedding must be on the CPU"),
            head=self.connection(owner, "head", owner.norm),
            output=self.wide(model.head.weight),
            layer=(StepLayer * len(blocks))(*map(self.layer, blocks)),
        )
        if isinstance(last, MultiTokenPredictor):
            made.embedded_proj, made.streams_proj = self.linear(last.e_proj), self.linear(last.h_proj)
            made.embedded_norm, made.streams_norm = self.floats(last.enorm.weight, last.hnorm.weight)
        return made

    def draft_struct(self, store: CacheStore) -> Any:
        """A pointer to the draft head's way in and its stages."""
        stages, head = self.model.stages, self.model.config.draft_head
        ids = array("q", head.target_layer_ids)
        rows = [store.layers[stage.spec.index].window_SWX for stage in stages]
        reason = "the store must lie in contiguous CPU memory"
        made = StepDraft(
            len(stages),
            len(ids),
            ids.buffer_info()[0],
            self.linear(stages[0].main_proj),
            *self.floats(stages[0].main_norm.weight),
            (StepLayer * len(stages))(*map(self.layer, stages)),
            (StepStoreLayer * len(stages))(*(StepStoreLayer(self.address(t, (t.dtype,), reason)) for t in rows)),
        )
        self.tensors += [ids, made]
        return ctypes.pointer(made)

    def store_struct(self, store: CacheStore, layers: Sequence[LayerStore]) -> StepStore:
        row_sets = [(layer.window_SWX, layer.entries_MX, layer.index_MX) for layer in layers]
        kinds = {t.dtype for rows in row_sets for t in rows if t is not None}
        if len(kinds) != 1 or not kinds <= set(_ROW_KINDS):
            raise UnfitError(f"rows must have one dtype of float32, bfloat16 and uint8, not {kinds}")
        made = []
        for rows, layer in zip(row_sets, layers, strict=True):
            parts = (*rows, layer.tails.get("main"), layer.tails.get("index"))
            dtypes = (*kinds, torch.float32)
            made.append([self.address(t, dtypes, "the store must lie in contiguous CPU memory") for t in parts])
        return StepStore(
            row_kind=_ROW_KINDS[kinds.pop()],
            entry_bytes=_row_bytes([window for window, _, _ in row_sets]),
            index_bytes=_row_bytes([index for _, _, index in row_sets]),
            page_tokens=store.spec.page_tokens,
            slots=store.slots.count,
            pages=store.pages.count,
            window_rows=store.spec.window_rows,
            taken_back=store.spec.taken_back,
            layer=(StepStoreLayer * len(made))(*(StepStoreLayer(*addresses) for addresses in made)),
        )


def _row_bytes(buffers: Sequence[Tensor | None]) -> int:
    """Bytes of a row of these buffers, which is the same for all of them; 0 without buffers."""
    return max((t.shape[-1] * t.element_size() for t in buffers if t is not None), default=0)
