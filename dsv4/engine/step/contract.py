"""One step of a whole model as one call: new tokens of several sequences through all layers, with their cache.

There is no reference.py: what this must equal is the model itself run op by op (`Transformer.hidden` and `logits` on a
`StepCache`) with the native kernels. The native code calls the same functions on the same rows, so streams, logits and
all rows written to the store are the same bits; tests/engine/test_fused.py compares them.

T new tokens, B sequences, S streams, D hidden size, E = S * D, X = (2 + S) * S mixes, H heads, C head dim, L query
latent, I indexer dim, J indexer heads, R output rank, G output groups, K experts per token, F entry width of a
compressor, m tokens per entry, P rotary pairs, V vocabulary, M rows of a buffer, W window rows, N wanted rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dsv4.engine.step import native
from dsv4.kernels.moe import ExpertWeights

__all__ = [
    "CompressorWeights",
    "Connection",
    "IndexerWeights",
    "LayerWeights",
    "LinearWeight",
    "PredictionWeights",
    "Span",
    "StepModel",
    "StepStore",
    "StoreLayer",
    "run_step",
    "supported",
]


@dataclass(frozen=True, slots=True)
class LinearWeight:
    """A linear layer as `matmul.linear` takes it."""

    weight: Tensor
    scale: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Connection:
    """A hyper-connection and the RMSNorm of the sub-layer behind it, all fp32."""

    fn_XE: Tensor
    scale: Tensor
    base_X: Tensor
    norm_D: Tensor


@dataclass(frozen=True, slots=True)
class CompressorWeights:
    """fp32 all; F is twice the entry's dim where blocks overlap."""

    kv_FD: LinearWeight
    gate_FD: LinearWeight
    bias_mF: Tensor
    norm: Tensor


@dataclass(frozen=True, slots=True)
class IndexerWeights:
    """query [J * I, L], weight [J, D]."""

    query: LinearWeight
    weight: LinearWeight
    compressor: CompressorWeights


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One block. ratio: tokens per compressed entry, 0 = sliding window only; overlap: an entry also reads the block
    before its own. Experts are chosen by score and `bias_E`, or looked up in `table_VK` by token."""

    ratio: int
    overlap: bool
    attention: Connection
    mixture: Connection
    q_a: LinearWeight
    q_b: LinearWeight
    kv: LinearWeight
    o_a: LinearWeight
    o_b: LinearWeight
    q_norm_L: Tensor
    kv_norm_C: Tensor
    sink_H: Tensor
    router_ED: Tensor
    bias_E: Tensor | None
    table_VK: Tensor | None
    experts: ExpertWeights
    compressor: CompressorWeights | None = None
    indexer: IndexerWeights | None = None


@dataclass(frozen=True, slots=True)
class PredictionWeights:
    """What a prediction block joins its inputs with: the embedding of the next token, and the streams it is given."""

    embedded_norm_D: Tensor
    streams_norm_D: Tensor
    embedded: LinearWeight
    streams: LinearWeight


@dataclass(eq=False, slots=True)
class StepModel:
    """Weights, used where they lie: build it anew when a tensor has been replaced. `embedding_VD` has the dtype of the
    activations. simulate: rows go through the release's FP8 and FP4. window: rows of a ring. prediction: given for a
    prediction block only."""

    layers: Sequence[LayerWeights]
    embedding_VD: Tensor
    head: Connection
    output_VD: LinearWeight
    plain_P: Tensor  # angular frequencies of layers without compressor
    long_P: Tensor  # of the others
    simulate: bool
    streams: int
    heads: int
    head_dim: int
    groups: int
    window: int
    index_heads: int
    index_dim: int
    index_topk: int
    per_token: int
    iterations: int
    norm_eps: float
    connection_eps: float
    limit: float
    expert_scale: float
    prediction: PredictionWeights | None = None
    native: dict[str, object] = field(default_factory=dict, init=False, repr=False)  # what implementations keep

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations."""
        return self.embedding_VD.dtype


@dataclass(frozen=True, slots=True)
class StoreLayer:
    """One layer's cache: rings of slots flattened, entries in pages. Rows are floats, bfloat16 or packed (`rows`)."""

    window_MX: Tensor
    entries_MX: Tensor | None = None
    index_MX: Tensor | None = None
    main_tail_MF: Tensor | None = None  # fp32: kv and score side by side
    index_tail_MF: Tensor | None = None


@dataclass(eq=False, slots=True)
class StepStore:
    """The caches of a model's layers. A ring row of position p is p modulo the ring's length; entry e of a sequence is
    row e % n of its page e // n, n = page_tokens // ratio."""

    layers: Sequence[StoreLayer]
    slots: int
    pages: int
    page_tokens: int
    native: dict[str, object] = field(default_factory=dict, init=False, repr=False)


@dataclass(frozen=True, slots=True)
class Span:
    """New tokens of one sequence and where it lives. cached: tokens before them. window_from: the first position whose
    ring rows are valid. entries_from: entries of earlier tokens are in the pages already and are not written."""

    tokens: Sequence[int]
    cached: int
    slot: int
    pages: Sequence[int]
    window_from: int = 0
    entries_from: int = 0


def supported(model: StepModel, store: StepStore) -> str | None:
    """Why `run_step` cannot take these; None when it can."""
    return native.why_not(model, store)


def run_step(
    model: StepModel, store: StepStore, spans: Sequence[Span], wanted: Sequence[int], given_TSD: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(streams after the last block [T, S, D], logits [N, V] fp32 of the rows `wanted`); writes the store.

    A prediction block starts from `given_TSD`, the backbone's streams before each token of the spans. Records no
    gradient. Raises ValueError where `supported` gives a reason, for an empty batch or span and for lengths that do not
    fit; IndexError for a token, slot, page or row that does not exist; then nothing is written.
    """
    return native.run_step(model, store, spans, wanted, given_TSD)
