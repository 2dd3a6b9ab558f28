"""The step as one native call: weights and rows are packed into structs once, a step passes a few small arrays.

T new tokens, B sequences, S streams, D hidden size, P rotary pairs, V vocabulary, N wanted rows.
"""

import ctypes
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsv4.engine.step import structs
from dsv4.kernels import native
from dsv4.kernels.hyper_connection.native import MOST_STREAMS
from dsv4.kernels.matmul.native import weight_kind
from dsv4.kernels.moe.native import packed_layer
from dsv4.kernels.quant import FP8_BLOCK
from dsv4.kernels.rows import INDEX_BLOCK

if TYPE_CHECKING:
    from dsv4.engine.step.contract import CompressorWeights, LayerWeights, LinearWeight, Span, StepModel, StepStore

_FEW, _MANY = 64, 32768  # numbers that one call of torch's cos takes
_WRONG = {
    1: (IndexError, "a token is not in the vocabulary"),
    2: (IndexError, "a slot does not exist"),
    3: (IndexError, "a page does not exist, or a sequence has too few"),
    4: (ValueError, "every span needs a token, and cached >= 0"),
    5: (IndexError, "an expert of the table does not exist"),
}


@cache
def _function(name: str, pointers: int) -> Callable[..., int]:
    return native.function(name, [ctypes.c_void_p] * pointers, ctypes.c_int)


def _linears(layer: "LayerWeights") -> "Iterator[LinearWeight]":
    """Those that take and give activations."""
    yield from (layer.q_a, layer.q_b, layer.kv, layer.o_a, layer.o_b)
    if layer.indexer is not None:
        yield from (layer.indexer.query, layer.indexer.weight)


def _compressors(layer: "LayerWeights") -> "Iterator[CompressorWeights]":
    if layer.compressor is not None:
        yield layer.compressor
    if layer.indexer is not None:
        yield layer.indexer.compressor


def _floats(model: "StepModel") -> Iterator[Tensor]:
    """What must be float32."""
    yield from (model.plain_P, model.long_P)
    connections = [model.head]
    for layer in model.layers:
        connections += [layer.attention, layer.mixture]
        yield from (layer.q_norm_L, layer.kv_norm_C, layer.sink_H)
        if layer.bias_E is not None:
            yield layer.bias_E
        for c in _compressors(layer):
            yield from (c.bias_mF, c.norm)
    for c in connections:
        yield from (c.fn_XE, c.scale, c.base_X, c.norm_D)
    if model.prediction is not None:
        yield from (model.prediction.embedded_norm_D, model.prediction.streams_norm_D)


def _wide(model: "StepModel") -> Iterator[Tensor]:
    """Matrices whose products are computed in float32; they may be stored in bfloat16."""
    yield model.output_VD.weight
    for layer in model.layers:
        yield layer.router_ED
        for c in _compressors(layer):
            yield from (c.kv_FD.weight, c.gate_FD.weight)


def why_not(model: "StepModel", store: "StepStore") -> str | None:
    """See dsv4.engine.step.contract.supported."""
    if not native.available():
        return f"no native kernels: {native.why_not()}"
    if model.dtype not in (torch.float32, torch.bfloat16):
        return f"activations must be float32 or bfloat16, not {model.dtype}"
    if model.streams > MOST_STREAMS:
        return f"at most {MOST_STREAMS} streams, not {model.streams}"
    if model.simulate and model.index_dim % INDEX_BLOCK:
        return f"the indexer's dim must be a multiple of {INDEX_BLOCK} to go through FP4, not {model.index_dim}"
    if any(t.dtype != torch.float32 or not _readable(t) for t in _floats(model)):
        return "norms, connections, biases and sinks must be float32 on the CPU"
    if any(t.dtype not in structs.PLAIN_KINDS.values() or not _readable(t) for t in _wide(model)):
        return "routers, compressors and the head must be float32 or bfloat16 on the CPU"
    tables = [layer.table_VK for layer in model.layers if layer.table_VK is not None]
    if any(t.dtype != torch.int64 or not _readable(t) for t in tables):
        return "tables of experts must be int64 on the CPU"
    return _why_not_linears(model) or _why_not_rows(store)


def _why_not_linears(model: "StepModel") -> str | None:
    layers = [linear for layer in model.layers for linear in _linears(layer)]
    if model.prediction is not None:
        layers += [model.prediction.embedded, model.prediction.streams]
    for weight, scale in ((x.weight, x.scale) for x in layers):
        if weight_kind(weight, scale) is None or not _readable(weight) or not (scale is None or _readable(scale)):
            return f"no native product for weights of {weight.dtype}"
        if scale is None and weight.dtype != model.dtype:
            return f"plain weights must have the activations' dtype {model.dtype}, not {weight.dtype}"
    if any(x.o_a.scale is not None and x.o_a.weight.shape[0] // model.groups % FP8_BLOCK for x in model.layers):
        return f"a quantised first output projection needs groups of a multiple of {FP8_BLOCK} rows"
    if any(c.kv_FD.scale is not None or c.gate_FD.scale is not None for x in model.layers for c in _compressors(x)):
        return "compressors must not be quantised"
    for layer in model.layers:
        made = packed_layer(layer.experts)
        if made is None or not layer.experts.shared:
            return "no native product for these experts' formats"
        for kind in (made.kind, made.shared_kind):
            if structs.PLAIN_KINDS.get(kind, model.dtype) != model.dtype:
                return f"plain experts must have the activations' dtype {model.dtype}"
    return None


def _why_not_rows(store: "StepStore") -> str | None:
    kinds = {t.dtype for x in store.layers for t in (x.window_MX, x.entries_MX, x.index_MX) if t is not None}
    if len(kinds) != 1 or not kinds <= set(structs.ROW_KINDS):
        return f"rows must have one dtype of float32, bfloat16 and uint8, not {kinds}"
    tensors = [getattr(x, name) for x in store.layers for name in structs.STORE_FIELDS]
    if not all(t is None or _readable(t) for t in tensors):
        return "the store must lie in contiguous CPU memory"
    return None


def _readable(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.is_contiguous()


def _packed(model: "StepModel", store: "StepStore") -> tuple[structs.Model, structs.Store]:
    """The structs of both, made once."""
    if "cpu" not in model.native or "cpu" not in store.native:
        reason = why_not(model, store)
        if reason is not None:
            raise ValueError(f"run_step: {reason}")
        model.native["cpu"], store.native["cpu"] = structs.model_struct(model), structs.store_struct(store)
    return model.native["cpu"], store.native["cpu"]  # pyrefly: ignore


def _rows_of_angles(model: "StepModel", spans: "Sequence[Span]", tokens: int) -> int:
    ratios = {layer.ratio for layer in model.layers if layer.ratio}
    ends = [(s.cached, s.cached + len(s.tokens)) for s in spans]
    return 2 * tokens + sum(end // ratio - old // ratio for ratio in ratios for old, end in ends)


def _cos_sin(angle_RP: Tensor) -> tuple[Tensor, Tensor]:
    """torch's own, so that they are the bits of `kernels.rope.rotation`."""
    if angle_RP.numel() > _MANY:
        return angle_RP.cos(), angle_RP.sin()
    # MKL wakes all threads for 128 numbers; on a busy machine that takes longer than the rest of a small step
    cos_RP, sin_RP = torch.empty_like(angle_RP), torch.empty_like(angle_RP)
    parts = (t.flatten().split(_FEW) for t in (angle_RP, cos_RP, sin_RP))
    for angle, cos, sin in zip(*parts, strict=True):
        torch.cos(angle, out=cos)
        torch.sin(angle, out=sin)
    return cos_RP, sin_RP


def run_step(
    model: "StepModel", store: "StepStore", spans: "Sequence[Span]", wanted: Sequence[int], given_TSD: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See dsv4.engine.step.contract.run_step."""
    packed_model, packed_store = _packed(model, store)
    columns = [
        [token for span in spans for token in span.tokens],
        [len(span.tokens) for span in spans],
        [span.cached for span in spans],
        [span.slot for span in spans],
        [span.window_from for span in spans],
        [span.entries_from for span in spans],
        [len(span.pages) for span in spans],
        [page for span in spans for page in span.pages],
        wanted,
    ]
    T, streams, dim = len(columns[0]), model.streams, model.embedding_VD.shape[1]
    _check(model, columns, given_TSD)
    numbers, starts = array("q"), []
    for column in columns:
        starts.append(8 * len(numbers))
        numbers.extend(column)
    address = numbers.buffer_info()[0]
    x_TSD = torch.empty(T, streams, dim, dtype=model.dtype)
    logits_NV = torch.empty(len(wanted), model.output_VD.weight.shape[0])
    angle_RP = torch.empty(_rows_of_angles(model, spans, T), model.long_P.shape[0])
    batch = structs.Batch(T, len(spans), len(wanted), *(address + start for start in starts))
    batch.given_TSD, batch.threads = native.pointer(given_TSD), torch.get_num_threads()
    pointers = (ctypes.addressof(packed_model), ctypes.addressof(packed_store), ctypes.addressof(batch))
    _raise(_function("dsv4_step_plan", 4)(*pointers, angle_RP.data_ptr()))
    cos_RP, sin_RP = _cos_sin(angle_RP)
    batch.cos, batch.sin = cos_RP.data_ptr(), sin_RP.data_ptr()
    batch.x_TSD, batch.logits_NV = x_TSD.data_ptr(), logits_NV.data_ptr()
    _raise(_function("dsv4_step", 3)(*pointers))
    return x_TSD, logits_NV


def _check(model: "StepModel", columns: Sequence[Sequence[int]], given_TSD: Tensor | None) -> None:
    T, wanted = len(columns[0]), columns[-1]
    if not T:
        raise ValueError("run_step: the batch is empty")
    if wanted and not 0 <= min(wanted) <= max(wanted) < T:
        raise IndexError(f"run_step: wanted rows must be in [0, {T})")
    if (given_TSD is None) != (model.prediction is None):
        raise ValueError("run_step: a prediction block, and only that, starts from given streams")
    if given_TSD is not None and (
        given_TSD.shape != (T, model.streams, model.embedding_VD.shape[1])
        or given_TSD.dtype != model.dtype
        or not _readable(given_TSD)
    ):
        raise ValueError(f"run_step: given streams must be contiguous [T, S, D] of {model.dtype}")


def _raise(code: int) -> None:
    if code:
        kind, text = _WRONG[code]
        raise kind(f"run_step: {text}")
