"""Drafts by the draft head (DSpark): its context rows in the cache, and blocks of proposed tokens.

Legend: T tokens, B sequences, R gathered rows, D hidden size, C head dim, V vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dsv4.cache import CacheStore, DraftCache, Place, StepCache
from dsv4.engine.draft_pace import Pace
from dsv4.engine.request import Request
from dsv4.engine.step import FusedStep
from dsv4.model.inputs import Sequences
from dsv4.model.transformer import Transformer


class DraftBlocks:
    """The draft head of one model on one store.

    Context rows are written for every row of a step, drafts included: rings have rows to spare, so a draft that is not
    accepted overwrites nothing that is read later.
    """

    def __init__(self, model: Transformer, store: CacheStore) -> None:
        self._model, self._store = model, store

    def remember(self, taps: list[Tensor], sequences: Sequences, cache: StepCache) -> None:
        """Write the context rows of a step."""
        rows = self._model.draft_context(torch.cat(taps, dim=1), sequences.positions_T)
        for stage, row_TC in zip(self._model.stages, rows, strict=True):
            cache.layer(stage.spec.index).append(row_TC, None, None)

    def propose(self, requests: Sequence[Request], pace: Pace, fused: FusedStep | None) -> None:
        """Set the drafts of requests whose last token is the only one not in the cache."""
        head = self._model.config.draft_head
        noise, previous = [head.noise_token_id] * (head.block_size - 1), [request.tokens[-1] for request in requests]
        blocks, starts = [[token, *noise] for token in previous], [request.cached for request in requests]
        places = [request.running_place for request in requests]
        rows_TD, logits_TV = (self._rows if fused is None else fused.draft)(blocks, starts, places)
        rows_BKD = rows_TD.view(len(requests), head.block_size, -1)
        logits_BKV = logits_TV.view(len(requests), head.block_size, -1)
        drafts: list[list[int]] = [[] for _ in requests]
        survivals: list[list[float]] = [[] for _ in requests]
        last = self._model.stages[-1]
        for k in range(head.block_size):
            embedded_Tr, bias_TV = last.markov_head(torch.tensor(previous, device=rows_TD.device))
            confidence = last.confidence_head(rows_BKD[:, k], embedded_Tr).tolist()
            row_TV = (logits_BKV[:, k] + bias_TV).cpu()  # tokens are sampled on the host
            previous = [request.sampler.guess(row_V, k) for request, row_V in zip(requests, row_TV, strict=True)]
            for i, (request, token) in enumerate(zip(requests, previous, strict=True)):
                if k < request.room:
                    drafts[i].append(token)
                    before = survivals[i][-1] if k else 1.0
                    survivals[i].append(before / (1 + math.exp(-max(confidence[i], -500.0))))
        for request, tokens, count in zip(requests, drafts, pace.lengths(survivals), strict=True):
            request.drafts = tokens[:count]

    def _rows(self, blocks: list[list[int]], starts: list[int], places: list[Place]) -> tuple[Tensor, Tensor]:
        """Collapsed rows [T, D] of blocks of equal length, and their logits [T, V] without the bias by the token
        before."""
        model, rows = self._model, len(blocks[0])
        device = model.hc_head_fn.device
        sequences = Sequences.pack([rows] * len(blocks), (), starts, device)
        tokens_T = torch.tensor(blocks, device=device).flatten()
        cache = DraftCache(self._store, places, starts, rows)
        rows_TD, head_TD = model.draft_rows(model.draft_hidden(tokens_T, sequences, cache))
        return rows_TD, model.head(head_TD)
