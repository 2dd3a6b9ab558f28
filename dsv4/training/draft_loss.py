"""What the draft head (DSpark) learns beside the frozen model: from positions of a batch, the next tokens and how the
model would weigh them (arXiv 2607.05147; the loss as in DeepSpec and SpecForge).

An *anchor* is a position whose token is followed by tokens to learn. Its block reads the context before it and drafts
the tokens after it; the token before each draft is the true one. Rows behind the first token that is not learned do not
count.

Legend: T tokens, N rows with a target, D hidden size, V vocabulary, r rank.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dsv4.config import DSpark
from dsv4.model.dspark import BlockKeys
from dsv4.model.inputs import KeyBuffer, Sequences
from dsv4.model.step import Regime
from dsv4.model.transformer import Transformer
from dsv4.training.balance import ExpertLoads, expert_load
from dsv4.training.batch import Batch
from dsv4.training.loss import Losses
from dsv4.training.settings import DraftSettings

_ROWS = 512  # whose logits exist at the same time


@dataclass(frozen=True, slots=True)
class Anchors:
    """The blocks of a batch. rows: of each anchor in the batch. places: its position in its document. counts: how many
    of its drafts have a target."""

    rows: tuple[int, ...]
    places: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def draw(cls, batch: Batch, share: float, block: int, generator: torch.Generator) -> "Anchors":
        """A share of each document's anchors, at least one where there is any, each at most once."""
        learn = (batch.learn_T > 0).tolist()
        rows, places, counts, first = [], [], [], 0
        for length in batch.lengths:
            found = [p for p in range(length - 1) if learn[first + p + 1]]
            count = min(len(found), max(1, round(share * length)))
            for at in sorted(torch.randperm(len(found), generator=generator)[:count].tolist()):
                place = found[at]
                ahead = learn[first + place + 1 : first + min(length, place + 1 + block)]
                rows.append(first + place)
                places.append(place)
                counts.append(ahead.index(False) if False in ahead else len(ahead))
            first += length
        return cls(tuple(rows), tuple(places), tuple(counts))


@dataclass(frozen=True, slots=True)
class DraftTotals:
    """The divisors over all micro-batches of a step. weight: of the losses. at: rows with a target at each place of a
    block."""

    weight: float
    at: tuple[int, ...]

    @classmethod
    def of(cls, anchors: Iterable[Anchors], block: int, decay: float) -> "DraftTotals":
        counts = [count for one in anchors for count in one.counts]
        at = tuple(sum(count > k for count in counts) for k in range(block))
        return cls(sum(rows * math.exp(-k / decay) for k, rows in enumerate(at)), at)


class _Context:
    """The cache of the blocks: context rows of the batch's own tokens, with their gradient."""

    def __init__(self, first: int, rows: list[Tensor], keys: BlockKeys) -> None:
        self._first, self._rows, self._keys = first, rows, keys

    def layer(self, index: int) -> "_ContextLayer":
        return _ContextLayer(self._rows[index - self._first], self._keys)


@dataclass(frozen=True, slots=True)
class _ContextLayer:
    rows_TC: Tensor
    keys: BlockKeys

    def append(self, kv_TC: Tensor, entries_NC: object, blocks: object) -> KeyBuffer:
        return self.keys.join(self.rows_TC.index_select(0, self.keys.context_R), kv_TC)


class _Loads:
    """How many rows each expert of the stages got."""

    def __init__(self) -> None:
        self.load: ExpertLoads = {}

    def routed(self, layer: int, score_TE: Tensor, ids_TK: Tensor) -> None:
        self.load[layer] = expert_load(ids_TK, score_TE.shape[1])


def draft_loss(
    model: Transformer,
    batch: Batch,
    anchors: Anchors,
    settings: DraftSettings,
    totals: DraftTotals,
    *,
    recompute: bool = False,
) -> Losses:
    """The loss of one packed batch; only the stages get a gradient.

    totals: of all batches of the step. parts, which add up over them: next (cross entropy), distance (twice the total
    variation of the two distributions), confidence, and for each place of the block accept_1, accept_2, ...: the
    expected share of drafts that are accepted there, if all before are.
    """
    head = model.config.draft_head
    K = head.block_size
    sequences, taps = model.pack(list(batch.lengths)), list[Tensor]()
    with torch.no_grad():
        x_TSD = model.hidden(batch.tokens_T, sequences, taps=taps)
    context = model.draft_context(torch.cat(taps, dim=1), sequences.positions_T)
    window, device = model.config.sliding_window, batch.tokens_T.device
    keys = BlockKeys(
        [range(row - min(place, window), row) for row, place in zip(anchors.rows, anchors.places, strict=True)],
        K,
        device,
    )
    loads = _Loads()
    blocks = Sequences.pack([K] * len(anchors.rows), (), anchors.places, device)
    cache = _Context(model.config.num_hidden_layers, context, keys)
    tokens_T = _inputs(batch, anchors, head).to(device)
    regime = Regime(recompute=recompute)
    y_TSD = model.draft_hidden(tokens_T, blocks, cache, loads, regime)  # type: ignore[arg-type]
    rows_TD, heads_TD = model.draft_rows(y_TSD)
    at = [(i * K + k, row + k, k) for i, row in enumerate(anchors.rows) for k in range(anchors.counts[i])]
    own, source, place = (torch.tensor(column, device=device) for column in zip(*at, strict=True))
    with torch.no_grad():
        target_ND = model.head_rows(x_TSD.index_select(0, source))
    sums = torch.zeros(3, device=device)
    accepts = []
    for part in torch.arange(len(own), device=device).split(_ROWS):
        mine, true = own[part], source[part]
        inputs = (
            rows_TD.index_select(0, mine),
            heads_TD.index_select(0, mine),
            target_ND[part],
            batch.tokens_T[true],
            batch.tokens_T[true + 1],
            torch.exp(-place[part] / settings.decay),
        )
        added, accept_N = checkpoint(_rows_loss, model, *inputs, use_reentrant=False, preserve_rng_state=False)
        sums = sums + added
        accepts.append(accept_N)
    entropy, distance, confidence = sums / max(totals.weight, 1e-30)
    loss = settings.entropy * entropy + settings.distance * distance + settings.confidence * confidence
    parts = {"next": entropy.detach(), "distance": distance.detach(), "confidence": confidence.detach()}
    return Losses(loss, parts | _accepted(torch.cat(accepts), place, totals), loads.load)


def _inputs(batch: Batch, anchors: Anchors, head: DSpark) -> Tensor:
    """The tokens of all blocks: the anchor's, then noise."""
    tokens_T = torch.full((len(anchors.rows), head.block_size), head.noise_token_id)
    tokens_T[:, 0] = batch.tokens_T.cpu()[list(anchors.rows)]
    return tokens_T.flatten()


def _rows_loss(
    model: Transformer,
    rows_TD: Tensor,
    heads_TD: Tensor,
    target_TD: Tensor,
    previous_T: Tensor,
    label_T: Tensor,
    weight_T: Tensor,
) -> tuple[Tensor, Tensor]:
    """Weighted sums of cross entropy, distance and confidence over some rows, and each row's expected acceptance."""
    last = model.stages[-1]
    embedded_Tr, bias_TV = last.markov_head(previous_T)
    log_TV = (model.head(heads_TD) + bias_TV).log_softmax(dim=1)
    with torch.no_grad():
        wanted_TV = model.head(target_TD).softmax(dim=1)
    distance_T = (log_TV.exp() - wanted_TV).abs().sum(dim=1)
    accept_T = (1 - 0.5 * distance_T).detach()
    entropy_T = -log_TV.gather(1, label_T[:, None]).squeeze(1)
    sure_T = last.confidence_head(rows_TD, embedded_Tr)
    confidence_T = F.binary_cross_entropy_with_logits(sure_T, accept_T.clamp(0, 1), reduction="none")
    return torch.stack([(weight_T * part_T).sum() for part_T in (entropy_T, distance_T, confidence_T)]), accept_T


def _accepted(accept_N: Tensor, place_N: Tensor, totals: DraftTotals) -> dict[str, Tensor]:
    """The batch's part of the mean at each place of a block."""
    return {f"accept_{k + 1}": accept_N[place_N == k].sum() / max(rows, 1) for k, rows in enumerate(totals.at)}
