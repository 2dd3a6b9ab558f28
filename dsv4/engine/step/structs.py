"""The structs of step.h, filled with the addresses of a model's weights and a store's rows.

The objects built here hold no tensor: they are kept beside the StepModel or StepStore whose tensors they point into.
"""

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsv4.kernels import native
from dsv4.kernels.matmul.native import BF16, F32, weight_kind
from dsv4.kernels.moe.native import packed_layer

if TYPE_CHECKING:
    from dsv4.engine.step.contract import (
        CompressorWeights,
        Connection,
        LayerWeights,
        LinearWeight,
        StepModel,
        StepStore,
    )

POINTER, INT64, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
PLAIN_KINDS = {F32: torch.float32, BF16: torch.bfloat16}
STORE_FIELDS = ("window_MX", "entries_MX", "index_MX", "main_tail_MF", "index_tail_MF")  # in the order of StoreLayer
ROW_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2}  # RowKind of rows/rows.h


def _all(kind: Any, names: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, kind) for name in names.split())


class Linear(ctypes.Structure):
    """`StepLinear`."""

    _fields_ = (*_all(POINTER, "weight scale"), *_all(INT64, "outputs inputs kind"))


class Mix(ctypes.Structure):
    """`StepConnection`."""

    _fields_ = _all(POINTER, "fn scale base norm")


class Compressor(ctypes.Structure):
    """`StepCompressor`."""

    _fields_ = (*_all(Linear, "kv gate"), *_all(POINTER, "bias norm"))


class Experts(ctypes.Structure):
    """`StepExperts`."""

    _fields_ = (*_all(POINTER, "w1 w2 w3 s1 s2 s3"), *_all(INT64, "inner kind shared_kind"))


class Layer(ctypes.Structure):
    """`StepLayer`."""

    _fields_ = (
        *_all(INT64, "ratio overlap"),
        *_all(Mix, "attention mixture"),
        *_all(Linear, "q_a q_b kv o_a o_b"),
        *_all(POINTER, "q_norm kv_norm sink"),
        *_all(Compressor, "main index"),
        *_all(Linear, "index_q index_weight router"),
        *_all(POINTER, "router_bias router_table"),
        ("experts", Experts),
    )


class Model(ctypes.Structure):
    """`StepModel`."""

    _fields_ = (
        *_all(INT64, "bf16 simulate layers streams dim vocabulary heads head_dim pairs groups window"),
        *_all(INT64, "index_heads index_dim index_topk experts per_token iterations"),
        *_all(FLOAT, "norm_eps connection_eps limit expert_scale attention_scale index_scale"),
        *_all(POINTER, "plain_P long_P embedding"),
        ("head", Mix),
        *_all(Linear, "output embedded_proj streams_proj"),
        *_all(POINTER, "embedded_norm streams_norm"),
        ("layer", ctypes.POINTER(Layer)),
    )


class StoreLayer(ctypes.Structure):
    """`StepStoreLayer`."""

    _fields_ = _all(POINTER, "window entries index main_tail index_tail")


class Store(ctypes.Structure):
    """`StepStore`."""

    _fields_ = (
        *_all(INT64, "row_kind entry_bytes index_bytes page_tokens slots pages"),
        ("layer", ctypes.POINTER(StoreLayer)),
    )


class Batch(ctypes.Structure):
    """`StepBatch`."""

    _fields_ = (
        *_all(INT64, "tokens sequences wanted"),
        *_all(POINTER, "token_T count_B cached_B slot_B window_from_B entries_from_B page_count_B pages wanted_N"),
        *_all(POINTER, "cos sin given_TSD x_TSD logits_NV"),
        ("threads", INT64),
    )


def _linear(layer: "LinearWeight") -> Linear:
    weight, scale = layer.weight, layer.scale
    kind = weight_kind(weight, scale)
    assert kind is not None
    inputs = weight.shape[1] * (2 if weight.dtype == torch.int8 else 1)
    return Linear(native.pointer(weight), native.pointer(scale), weight.shape[0], inputs, kind)


def _plain(weight: Tensor) -> Linear:
    return Linear(native.pointer(weight), None, *weight.shape, weight_kind(weight, None))


def _mix(connection: "Connection") -> Mix:
    return Mix(*map(native.pointer, (connection.fn_XE, connection.scale, connection.base_X, connection.norm_D)))


def _compressor(weights: "CompressorWeights") -> Compressor:
    return Compressor(
        _linear(weights.kv_FD), _linear(weights.gate_FD), native.pointer(weights.bias_mF), native.pointer(weights.norm)
    )


def _layer(weights: "LayerWeights") -> Layer:
    layer = Layer(
        ratio=weights.ratio, overlap=weights.overlap, attention=_mix(weights.attention), mixture=_mix(weights.mixture)
    )
    for name in ("q_a", "q_b", "kv", "o_a", "o_b"):
        setattr(layer, name, _linear(getattr(weights, name)))
    layer.q_norm, layer.kv_norm = native.pointer(weights.q_norm_L), native.pointer(weights.kv_norm_C)
    layer.sink = native.pointer(weights.sink_H)
    layer.router = _plain(weights.router_ED)
    layer.router_bias, layer.router_table = native.pointer(weights.bias_E), native.pointer(weights.table_VK)
    if weights.compressor is not None:
        layer.main = _compressor(weights.compressor)
    if weights.indexer is not None:
        layer.index = _compressor(weights.indexer.compressor)
        layer.index_q, layer.index_weight = _linear(weights.indexer.query), _linear(weights.indexer.weight)
    experts = packed_layer(weights.experts)
    assert experts is not None
    layer.experts = Experts(*experts.rows, experts.inner, experts.kind, experts.shared_kind)
    return layer


def model_struct(model: "StepModel") -> Model:
    """All that stays the same from step to step."""
    layers = (Layer * len(model.layers))(*map(_layer, model.layers))
    names = [
        "streams",
        "heads",
        "head_dim",
        "groups",
        "window",
        "index_heads",
        "index_dim",
        "index_topk",
        "per_token",
        "iterations",
    ]
    numbers = {name: getattr(model, name) for name in names}
    floats = {name: getattr(model, name) for name in ("norm_eps", "connection_eps", "limit", "expert_scale")}
    vocabulary, dim = model.embedding_VD.shape
    made = Model(
        bf16=model.dtype == torch.bfloat16,
        simulate=model.simulate,
        layers=len(model.layers),
        dim=dim,
        vocabulary=vocabulary,
        pairs=model.long_P.shape[0],
        experts=model.layers[0].router_ED.shape[0],
        attention_scale=model.head_dim**-0.5,
        index_scale=model.index_dim**-0.5 * model.index_heads**-0.5,
        plain_P=native.pointer(model.plain_P),
        long_P=native.pointer(model.long_P),
        embedding=native.pointer(model.embedding_VD),
        head=_mix(model.head),
        output=_linear(model.output_VD),
        layer=layers,
        **numbers,
        **floats,
    )
    if model.prediction is not None:
        made.embedded_proj, made.streams_proj = _linear(model.prediction.embedded), _linear(model.prediction.streams)
        made.embedded_norm = native.pointer(model.prediction.embedded_norm_D)
        made.streams_norm = native.pointer(model.prediction.streams_norm_D)
    return made


def row_bytes(rows: Sequence[Tensor | None]) -> int:
    """Bytes of a row of these buffers, which agree; 0 when there is none."""
    return max((t.shape[1] * t.element_size() for t in rows if t is not None), default=0)


def store_struct(store: "StepStore") -> Store:
    """Addresses of all rows."""
    rows = [StoreLayer(*(native.pointer(getattr(layer, name)) for name in STORE_FIELDS)) for layer in store.layers]
    return Store(
        row_kind=ROW_KINDS[store.layers[0].window_MX.dtype],
        entry_bytes=row_bytes([layer.window_MX for layer in store.layers]),
        index_bytes=row_bytes([layer.index_MX for layer in store.layers]),
        page_tokens=store.page_tokens,
        slots=store.slots,
        pages=store.pages,
        layer=(StoreLayer * len(rows))(*rows),
    )
