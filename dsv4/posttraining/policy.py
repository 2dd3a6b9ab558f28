"""The policy's own view of its samples: packed batches, and the log-probabilities of the tokens it chose.

T packed tokens, N learned tokens, D hidden size, K kept ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from dsv4.kernels.vocab_loss import row_logprobs
from dsv4.model.step import PLAIN, Observer, Regime
from dsv4.model.transformer import Transformer
from dsv4.posttraining.replay import Replay
from dsv4.posttraining.types import Sample
from dsv4.training.batch import Batch
from dsv4.training.packing import best_fit


@dataclass(frozen=True, slots=True)
class PolicyBatch(Batch):
    """A packed batch of samples. Every learned token's numbers lie at its own place, as in Batch.

    sampled_T: log-probability under the distribution it was sampled from. advantage_T: of its sample. beta_T: weight of
    the KL to the reference. reference_T: log-probability under the reference, where there is one. fresh_T: whether the
    weights that are learning now chose it.
    """

    sampled_T: Tensor
    advantage_T: Tensor
    beta_T: Tensor
    fresh_T: Tensor
    replay: Replay
    reference_T: Tensor | None = None

    @classmethod
    def of(
        cls, samples: Sequence[Sample], betas: Mapping[str, float], *, version: int = 0, by_sequence: bool = False
    ) -> "PolicyBatch":
        """betas: the KL's weight by domain. version: of the weights now. by_sequence: a token counts 1 / the learned
        tokens of its sample instead of 1. Raises ValueError naming a sample whose replayed choice is impossible."""
        learned = [torch.tensor(sample.learn, dtype=torch.bool) for sample in samples]
        for sample, learn_T in zip(samples, learned, strict=True):
            _check(sample, learn_T)
        counts = [max(1, int(learn_T.sum())) if by_sequence else 1 for learn_T in learned]
        lengths = [len(sample.tokens) for sample in samples]

        def spread(values: Sequence[float]) -> Tensor:
            return torch.repeat_interleave(torch.tensor(values), torch.tensor(lengths))

        return cls(
            tokens_T=torch.cat([torch.tensor(sample.tokens) for sample in samples]),
            lengths=tuple(lengths),
            learn_T=torch.cat([learn_T / count for learn_T, count in zip(learned, counts, strict=True)]),
            sampled_T=torch.cat([torch.tensor(sample.logprobs, dtype=torch.float32) for sample in samples]),
            advantage_T=spread([sample.advantage for sample in samples]),
            beta_T=spread([betas[sample.domain] for sample in samples]),
            fresh_T=spread([float(sample.version == version) for sample in samples]) > 0,
            replay=Replay.of([sample.trace for sample in samples], lengths),
        )

    def with_reference(self, reference: Transformer) -> "PolicyBatch":
        """The same on the reference's device, with its log-probabilities."""
        batch = self.to(reference.device)
        with torch.no_grad():
            found = policy_logprobs(reference, batch)
        reference_T = torch.zeros_like(batch.sampled_T)
        reference_T[found.place_N] = found.logprob_N
        return replace(batch, reference_T=reference_T)


def _check(sample: Sample, learn_T: Tensor) -> None:
    logprob_T = torch.tensor(sample.logprobs, dtype=torch.float32)
    if not bool((logprob_T[learn_T].isfinite()).all()):
        raise ValueError(f"sample {sample.key}: a learned token has no finite log-probability")
    if sample.trace is None:
        return
    for i, kept in enumerate(sample.trace.kept):
        place = sample.trace.first + i + 1
        if kept and place < len(sample.tokens) and sample.learn[place] and sample.tokens[place] not in kept:
            raise ValueError(f"sample {sample.key}: token {place} is not among the ids that it was chosen from")


class Logprobs(NamedTuple):
    """Of the learned tokens of a batch. place_N: where they lie. logprob_N carries the gradient."""

    place_N: Tensor
    logprob_N: Tensor
    entropy_N: Tensor


def learned_rows(
    model: Transformer, batch: Batch, replay: Replay | None = None, observer: Observer | None = None
) -> tuple[Tensor, Tensor]:
    """The positions before each learned token, [N], and the head's input there, [N, D]; with `replay` experts and
    entries are those of the sampler."""
    regime = PLAIN if replay is None else Regime(routes=replay.routes or None, entries=replay.entries or None)
    x_TSD = model.hidden(batch.tokens_T, model.pack(list(batch.lengths)), observer=observer, regime=regime)
    row_N = batch.weights(1).nonzero().flatten()
    return row_N, model.head_rows(x_TSD[row_N])


def policy_logprobs(model: Transformer, batch: PolicyBatch, observer: Observer | None = None) -> Logprobs:
    """The log-probability of each learned token at temperature 1, among the ids that it was chosen from, and the
    entropy there; experts and entries are those of the sampler. Logits are made a chunk of rows at a time."""
    row_N, rows_ND = learned_rows(model, batch, batch.replay, observer)
    kept_NK = None if batch.replay.kept_TK is None else batch.replay.kept_TK[row_N]
    out = row_logprobs(rows_ND, model.head.weight, batch.tokens_T[row_N + 1], kept_NK)
    return Logprobs(row_N + 1, out.logprob_T, out.entropy_T)


def pack_samples(samples: Sequence[Sample], micro: int) -> list[list[Sample]]:
    """Samples in micro-batches of at most `micro` tokens; a longer one has a micro-batch of its own. The result depends
    on the samples and their order alone."""
    lengths = [len(sample.tokens) for sample in samples]
    if not lengths:
        return []
    return [[samples[i] for i in sorted(part)] for part in best_fit(lengths, max(micro, *lengths))]
