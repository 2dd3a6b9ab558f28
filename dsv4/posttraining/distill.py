"""On-policy distillation (report 5.1.2, equation 29): on what the student writes itself it learns each teacher's whole
distribution,

    L = sum_i w_i KL(student || teacher_i),    one teacher for each sample, by its domain

and, with the same samples, the controls that it is compared with.

T packed tokens, N learned tokens, D hidden size, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dsv4.kernels.distill_loss import Divergence, distill_loss
from dsv4.kernels.vocab_loss import row_logprobs, vocab_loss
from dsv4.model.transformer import Transformer
from dsv4.posttraining.distill_recipe import ObjectiveSettings
from dsv4.posttraining.distill_tokens import WeighedSample
from dsv4.posttraining.policy import learned_rows, pack_samples
from dsv4.posttraining.replay import Replay
from dsv4.posttraining.teachers import CachedRows, Teachers
from dsv4.training.batch import Batch, Totals


@dataclass(frozen=True, slots=True)
class DistillBatch(Batch):
    """Packed samples of one teacher. sampled_T: log-probability under the distribution a token was sampled from.
    domain_T: number of its domain. rows: the teacher's, one for each learned token. reference: those of the initial
    student."""

    teacher: int
    sampled_T: Tensor
    domain_T: Tensor
    replay: Replay
    rows: CachedRows | None = None
    reference: CachedRows | None = None


def distill_batches(
    samples: Sequence[WeighedSample], shares: Mapping[str, float], domains: Sequence[str], micro: int
) -> list[DistillBatch]:
    """Micro-batches of at most `micro` tokens, ordered by teacher; none holds samples of two. shares: by domain, what
    tokens' weights are multiplied with."""
    found = []
    for teacher in sorted({one.teacher for one in samples}):
        own = [one for one in samples if one.teacher == teacher]
        by_sample = {id(one.sample): one for one in own}
        for part in pack_samples([one.sample for one in own], micro):
            found.append(_batch([by_sample[id(sample)] for sample in part], shares, domains))
    return found


def _batch(samples: Sequence[WeighedSample], shares: Mapping[str, float], domains: Sequence[str]) -> DistillBatch:
    lengths = [len(one.weights) for one in samples]
    weights = [torch.tensor(one.weights, dtype=torch.float64) * shares[one.sample.domain] for one in samples]
    numbers = torch.tensor([domains.index(one.sample.domain) for one in samples])
    return DistillBatch(
        tokens_T=torch.cat([torch.tensor(one.sample.tokens) for one in samples]),
        lengths=tuple(lengths),
        learn_T=torch.cat(weights).float(),
        teacher=samples[0].teacher,
        sampled_T=torch.cat([torch.tensor(one.sample.logprobs, dtype=torch.float32) for one in samples]),
        domain_T=torch.repeat_interleave(numbers, torch.tensor(lengths)),
        replay=Replay.of([one.sample.trace for one in samples], lengths),
    )


def with_rows(batches: Sequence[DistillBatch], teachers: Teachers, reference: Teachers | None) -> list[DistillBatch]:
    """The same with the rows of their teachers, and of the initial student where there is a `reference`."""
    rows = teachers.cache(batches, [batch.teacher for batch in batches])
    found = [replace(batch, rows=own) for batch, own in zip(batches, rows, strict=True)]
    if reference is None:
        return found
    rows = reference.cache(batches, [0] * len(batches))
    return [replace(batch, reference=own) for batch, own in zip(found, rows, strict=True)]


@dataclass(frozen=True, slots=True)
class DistillObjective:
    """What `Learner.step` minimises: a sum over learned tokens, each with its weight, divided by all weights.

    "reverse", "forward", "jsd" and "top-k" are divergences over the vocabulary (`dsv4.kernels.distill_loss`). "sampled"
    counts only the token that was chosen, as an advantage: -(p / p_old) (log q - log p_old). "sft" is the cross entropy
    of the samples. Metrics are sums over learned tokens, without weights: chosen, entropy, kl.DOMAIN (always the exact
    KL(student || teacher), whatever is minimised) and count.DOMAIN; reference_kl to the initial student.
    """

    settings: ObjectiveSettings
    domains: Sequence[str]
    teachers: Teachers
    reference: Teachers | None = None
    without: tuple[int, ...] = ()

    def __call__(
        self, model: Transformer, batch: DistillBatch, totals: Totals
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        assert batch.rows is not None
        row_N, rows_ND = learned_rows(model, batch, batch.replay)
        total = max(totals.next, 1e-30)
        weight_N = batch.learn_T[row_N + 1]
        head_VD, cached_ND = self.teachers.head(batch.teacher), batch.rows.read().to(rows_ND.device)
        student = rows_ND, model.head.weight
        divergence, exact = self._divergence(), None
        if divergence is None:
            loss = self._of_samples(student, cached_ND, head_VD, batch, row_N, weight_N, total)
        else:
            found = distill_loss(
                *student, cached_ND, head_VD, weight_N, divergence=divergence, without=self.without, total=total
            )
            loss, exact = found.loss, found if divergence == Divergence() else None
        if exact is None:
            with torch.no_grad():
                exact = distill_loss(*student, cached_ND, head_VD, without=self.without)
        metrics: dict[str, Tensor | float] = {"chosen": float(len(row_N)), "entropy": exact.entropy_T.sum()}
        for number, domain in enumerate(self.domains):
            own_N = batch.domain_T[row_N] == number
            metrics |= {f"kl.{domain}": exact.divergence_T[own_N].sum(), f"count.{domain}": own_N.sum()}
        if self.reference is not None:
            assert batch.reference is not None
            first_ND = batch.reference.read().to(rows_ND.device)
            held = distill_loss(*student, first_ND, self.reference.head(0), weight_N, without=self.without, total=total)
            loss = loss + self.settings.reference * held.loss
            metrics["reference_kl"] = held.divergence_T.sum()
        return loss, metrics

    def _divergence(self) -> Divergence | None:
        """What is minimised, where it is one over the vocabulary."""
        settings = self.settings
        match settings.kind:
            case "reverse" | "forward":
                return Divergence(settings.kind)
            case "jsd":
                return Divergence("jsd", beta=settings.beta)
            case "top-k":
                return Divergence(top_k=settings.top_k, detached=settings.detached)
        return None

    def _of_samples(
        self,
        student: tuple[Tensor, Tensor],
        cached_ND: Tensor,
        head_VD: Tensor,
        batch: DistillBatch,
        row_N: Tensor,
        weight_N: Tensor,
        total: float,
    ) -> Tensor:
        """The controls that look at the chosen tokens alone."""
        target_N = batch.tokens_T[row_N + 1]
        if self.settings.kind == "sft":
            return vocab_loss(*student, target_N, weight_N, total=total).loss
        old_N = batch.sampled_T[row_N + 1]
        with torch.no_grad():
            advantage_N = row_logprobs(cached_ND.float(), head_VD, target_N).logprob_T - old_N
        ratio_N = (row_logprobs(*student, target_N).logprob_T - old_N).exp()
        return -(weight_N * ratio_N * advantage_N).sum() / total
