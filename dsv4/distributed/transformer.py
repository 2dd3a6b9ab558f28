"""The model on many ranks: the same modules and parameter names, with caches and observers that exchange rows.

Legend: T tokens, S streams, D hidden size.
"""

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from dsv4.config import ModelConfig, Routing
from dsv4.distributed.context_parallel import BalanceObserver, ContextCache, ContextSplit, LocalSequences, reach
from dsv4.distributed.mesh import Mesh
from dsv4.model.inputs import ModelCache, Sequences
from dsv4.model.layers import FP32, Numerics
from dsv4.model.step import PLAIN, Observer, Regime
from dsv4.model.transformer import Transformer


class RankTransformer(Transformer):
    """A Transformer of which this rank holds a part after `fsdp.shard` and `expert_parallel.split`.

    Parameter names stay those of the whole model. Every rank of the mesh must make the same calls.
    """

    def __init__(self, config: ModelConfig, mesh: Mesh, numerics: Numerics = FP32, impl: str | None = None) -> None:
        super().__init__(config, numerics, impl)
        self.mesh = mesh
        self._balances: list[BalanceObserver] = []

    def pack(self, lengths: list[int], cached: list[int] | None = None) -> Sequences:
        """See Transformer.pack; with several context ranks this rank's stretch of the documents `lengths`.

        Raises ValueError for documents too short to be cut (see `ContextSplit.of`).
        """
        if self.mesh.scale.context == 1 or cached is not None:
            return super().pack(lengths, cached)
        place, ranks = self.mesh.place("context"), self.mesh.scale.context
        split = ContextSplit.of(lengths, place, ranks, reach(self.config))
        return LocalSequences.cut(split, self.config.compressor_ratios, self.device)

    def hidden(
        self,
        tokens_T: Tensor,
        sequences: Sequences,
        cache: ModelCache | None = None,
        observer: Observer | None = None,
        regime: Regime = PLAIN,
        taps: list[Tensor] | None = None,
    ) -> Tensor:
        """See Transformer.hidden. Tokens after those of `sequences` are ignored."""
        if isinstance(self.head, FSDPModule) and torch.is_grad_enabled():
            # the loss reads the head's weight without calling the head; the end of the backward pass frees it
            self.head.unshard()
        tokens_T, observer = tokens_T[: sequences.tokens], self._balanced(observer, sequences)
        return super().hidden(tokens_T, sequences, cache or self._cache(sequences), observer, regime, taps)

    def mtp_hidden(
        self,
        x_TSD: Tensor,
        next_tokens_T: Tensor,
        sequences: Sequences,
        cache: ModelCache | None = None,
        observer: Observer | None = None,
        regime: Regime = PLAIN,
    ) -> Tensor:
        """See Transformer.mtp_hidden. Tokens after those of `sequences` are ignored."""
        tokens_T, observer = next_tokens_T[: sequences.tokens], self._balanced(observer, sequences)
        return super().mtp_hidden(x_TSD, tokens_T, sequences, cache or self._cache(sequences), observer, regime)

    def take_balance(self) -> Tensor | None:
        """The part that the balance loss of all layers lacks, from the observers since the last call, not yet divided;
        None if no document is cut. Differentiable."""
        found = [value for balance in self._balances for value in balance.found]
        for balance in self._balances:
            balance.open = False
        self._balances = []
        return torch.stack(found).sum() if found else None

    def _balanced(self, observer: Observer | None, sequences: Sequences) -> Observer | None:
        if observer is None or not isinstance(sequences, LocalSequences) or not torch.is_grad_enabled():
            return observer
        learned = {s.index for s in (*self.config.layers, *self.config.mtp_layers) if s.routing is Routing.LEARNED}
        balance = BalanceObserver(observer, sequences, learned, self.mesh.group("context"))
        self._balances.append(balance)
        return balance

    def _cache(self, sequences: Sequences) -> ModelCache | None:
        if not isinstance(sequences, LocalSequences):
            return None
        return ContextCache(sequences, self.config.sliding_window, self.mesh.group("context"))
