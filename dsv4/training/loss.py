"""The losses of a training step (report 4.3): next token, token after next, balance, and the indexers' KL.

Legend: T tokens, N rows with a target, S streams, D hidden size, E experts, K choices per token.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dsv4.config import Routing
from dsv4.kernels.indexer_loss import IndexedAttention, indexer_kl
from dsv4.kernels.vocab_loss import vocab_loss
from dsv4.model.inputs import Sequences
from dsv4.model.step import Regime
from dsv4.model.transformer import Transformer
from dsv4.training.balance import ExpertLoads, expert_load, sequence_balance
from dsv4.training.batch import Batch, Totals
from dsv4.training.indexer_loss import Recall, only_indexers, recall
from dsv4.training.schedule import Phase
from dsv4.training.settings import LossWeights

DEFAULT_WEIGHTS = LossWeights()


@dataclass(slots=True)
class Losses:
    """`total` carries the gradient. `parts` are unweighted and detached: next, mtp, balance, indexer, accuracy; they
    add up over micro-batches that share `Totals`. `load` is what `balance.move_biases` needs."""

    total: Tensor
    parts: dict[str, Tensor]
    load: ExpertLoads
    recalls: dict[int, Recall] = field(default_factory=dict)


class _LossObserver:
    """Collects what the layers say during the forward pass. When blocks run again in the backward pass it computes the
    same but keeps nothing."""

    def __init__(self, model: Transformer, sequences: Sequences, phase: Phase, recall_queries: int) -> None:
        config = model.config
        self._learned = {s.index for s in (*config.layers, *config.mtp_layers) if s.routing is Routing.LEARNED}
        self._sequences, self._phase = sequences, phase
        self._k, self._recall_queries = config.index_topk, recall_queries
        self._balance: list[Tensor] = []
        self._indexer: list[Tensor] = []
        self._open = True
        self.load: ExpertLoads = {}
        self.recalls: dict[int, Recall] = {}

    def routed(self, layer: int, score_TE: Tensor, ids_TK: Tensor) -> None:
        documents = len(self._sequences.cached)
        value = None
        if layer in self._learned and self._phase is not Phase.WARMUP:  # a table cannot be balanced by a gradient
            value = sequence_balance(score_TE, ids_TK, self._sequences.sequence_T, documents)
        if self._open:
            self.load[layer] = expert_load(ids_TK, score_TE.shape[1])
            if value is not None:
                self._balance.append(value)

    def indexed(self, seen: IndexedAttention) -> None:
        value = indexer_kl(seen)
        if self._open:
            self._indexer.append(value)
            if self._recall_queries:
                self.recalls[seen.layer] = recall(seen, self._k, self._recall_queries)

    def close(self) -> tuple[Tensor, Tensor]:
        """Sums over layers of the balance loss and of the indexers' KL, not yet divided."""
        self._open = False
        zero = torch.zeros((), device=self._sequences.positions_T.device)
        return sum(self._balance, zero), sum(self._indexer, zero)


def compute_loss(
    model: Transformer,
    batch: Batch,
    *,
    phase: Phase = Phase.SPARSE,
    weights: LossWeights = DEFAULT_WEIGHTS,
    totals: Totals | None = None,
    routes: Mapping[int, Tensor] | None = None,
    recompute: bool = False,
    recall_queries: int = 0,
) -> Losses:
    """Forward pass and losses of one packed batch.

    phase: DENSE reads every compressed entry and leaves the indexers alone; WARMUP reads them too, but the only loss
    is the indexers' (nothing else gets a gradient, `next` is reported); SPARSE reads the choice and trains everything.
    totals: what to divide by when several batches make one step (default: this batch's own). routes: expert ids by
    layer in place of the learned choice. recompute: keep only each block's input for the backward pass.
    recall_queries: measure recall on so many queries a layer (0: do not).
    """
    totals = totals or Totals.of([batch])
    sequences = model.pack(list(batch.lengths))
    observer = _LossObserver(model, sequences, phase, recall_queries)
    warmup = phase is Phase.WARMUP
    regime = Regime(
        dense=phase is not Phase.SPARSE,
        routes=routes,
        indexed=None if phase is Phase.DENSE else observer.indexed,
        recompute=recompute and not warmup,
    )
    if warmup:
        with only_indexers(model):
            x_TSD = model.hidden(batch.tokens_T, sequences, observer=observer, regime=regime)
            main, accuracy = _next_token(model, x_TSD, batch, totals)
        _, indexer = observer.close()
        indexer = indexer / totals.tokens
        parts = {"next": main, "accuracy": accuracy, "indexer": indexer}
        return Losses(weights.indexer * indexer, _detached(parts), observer.load, observer.recalls)
    x_TSD = model.hidden(batch.tokens_T, sequences, observer=observer, regime=regime)
    main, accuracy = _next_token(model, x_TSD, batch, totals)
    total, parts = main, {"next": main, "accuracy": accuracy}
    if model.predictors and weights.mtp:  # a prediction block of weight 0 rests
        parts["mtp"] = _token_after(model, x_TSD, batch, sequences, totals, observer, regime)
        total = total + weights.mtp * parts["mtp"]
    balance, indexer = (value / totals.tokens for value in observer.close())
    parts["balance"] = balance
    total = total + weights.balance * balance
    if phase is Phase.SPARSE:
        parts["indexer"] = indexer
        total = total + weights.indexer * indexer
    return Losses(total, _detached(parts), observer.load, observer.recalls)


def _detached(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in parts.items()}


def _next_token(model: Transformer, x_TSD: Tensor, batch: Batch, totals: Totals) -> tuple[Tensor, Tensor]:
    """Loss, and the share of right first guesses."""
    weight_T = batch.weights(1)
    row_N = weight_T.nonzero().flatten()
    rows_ND = model.head_rows(x_TSD[row_N])
    total = max(totals.next, 1e-30)
    out = vocab_loss(rows_ND, model.head.weight, batch.tokens_T[row_N + 1], weight_T[row_N], total=total)
    return out.loss, (out.correct_T * weight_T[row_N]).sum() / total


def _token_after(
    model: Transformer,
    x_TSD: Tensor,
    batch: Batch,
    sequences: Sequences,
    totals: Totals,
    observer: _LossObserver,
    regime: Regime,
) -> Tensor:
    """The prediction block sees token t + 1 beside row t and predicts token t + 2 of the same document."""
    next_T = torch.roll(batch.tokens_T, -1)  # a document's last row gets a foreign token, and no target
    ahead_TSD = model.mtp_hidden(x_TSD, next_T, sequences, observer=observer, regime=regime)
    weight_T = batch.weights(2)
    row_N = weight_T.nonzero().flatten()
    rows_ND = model.mtp_head_rows(ahead_TSD[row_N])
    target_N = batch.tokens_T[row_N + 2]
    return vocab_loss(rows_ND, model.head.weight, target_N, weight_T[row_N], total=max(totals.ahead, 1e-30)).loss
