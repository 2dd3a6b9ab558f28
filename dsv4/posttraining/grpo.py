"""Group relative policy optimisation as V3.2 writes it, which the report aligns with (5.1): advantages within a group,
clipping, an unbiased KL to a reference, and a mask for what was sampled off the policy.

N learned tokens, S samples of a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev

import torch
from torch import Tensor

from dsv4.model.transformer import Transformer
from dsv4.posttraining.policy import PolicyBatch, policy_logprobs
from dsv4.posttraining.settings import EffortSettings, PolicySettings, effort_settings
from dsv4.posttraining.types import Effort, Group, Rollout, Sample
from dsv4.training.batch import Totals


@dataclass(slots=True)
class Judged:
    """What there is to learn from some groups, and what was left out and why.

    broken: rollouts without a finite reward. stale: groups with a token older than allowed; all of the group, because
    its longest rollouts are the oldest, and short answers would look better without them. equal: groups whose rewards
    are all the same, which compare nothing. small: groups with fewer than two rollouts left. masked: rollouts that were
    cut and only count in their group's mean. rewards, penalised: of the rest, before and after the length penalty.
    """

    samples: list[Sample] = field(default_factory=list)
    broken: int = 0
    stale: int = 0
    equal: int = 0
    small: int = 0
    masked: int = 0
    rewards: list[float] = field(default_factory=list)
    penalised: list[float] = field(default_factory=list)


def judge(
    groups: Sequence[Group],
    settings: PolicySettings,
    efforts: Mapping[Effort, EffortSettings],
    version: int,
    *,
    before_penalty: bool = False,
) -> Judged:
    """Advantages A = R - mean(R) of each group's rollouts (over their standard deviation where `settings.std`).

    A rollout that nothing could judge, or whose reward is not finite, is left out alone: the others keep their group.
    version: of the weights now. before_penalty: a group whose rewards are equal before the length penalty compares
    nothing, although lengths may differ.
    """
    found = Judged()
    for group in groups:
        if any(rollout.length and version - rollout.oldest > settings.stale for rollout in group.rollouts):
            found.stale += 1
            continue
        found.broken += sum(rollout.broken for rollout in group.rollouts)
        usable = group.usable
        if len(usable) < 2:
            found.small += 1
            continue
        effort = effort_settings(efforts, group.prompt.effort)
        plain = [float(rollout.reward or 0.0) for rollout in usable]
        rewards = [reward - effort.penalty(rollout.length) for reward, rollout in zip(plain, usable, strict=True)]
        found.rewards += plain
        found.penalised += rewards
        compared = plain if before_penalty else rewards
        if max(compared) == min(compared):
            found.equal += 1
            continue
        _compare(usable, rewards, settings, found)
    return found


def _compare(usable: Sequence[Rollout], rewards: Sequence[float], settings: PolicySettings, found: Judged) -> None:
    """A group's samples with their advantages."""
    mean, scale = fmean(rewards), pstdev(rewards) if settings.std else 1.0
    for rollout, reward in zip(usable, rewards, strict=True):
        if settings.cut == "mask" and not rollout.finished:
            found.masked += 1
        else:
            found.samples.append(Sample.of(rollout, (reward - mean) / scale))


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """What `Learner.step` minimises. divisor: what sums over learned tokens are divided by; None = the update's totals.

    With the ratio r = new / old probability of a token, A its sample's advantage, M the off-policy mask and q the
    reference's over the new probability, a token counts (V3.2)

        -min(r A, clip(r, 1 - low, 1 + high) A) M + beta r (q - log q - 1)

    The old probability is the sampler's own. Metrics are sums over learned tokens: chosen (how many), entropy, kl (to
    the reference), clipped, off_policy (tokens masked), fresh (chosen by the weights of now) and mismatch: over these
    the k3 estimate of KL(sampler || learner), 0 in exact arithmetic.
    """

    settings: PolicySettings
    divisor: float | None = None

    def __call__(
        self, model: Transformer, batch: PolicyBatch, totals: Totals
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        found = policy_logprobs(model, batch)
        place_N, logprob_N = found.place_N, found.logprob_N
        log_ratio_N = logprob_N - batch.sampled_T[place_N]
        ratio_N, advantage_N = log_ratio_N.exp(), batch.advantage_T[place_N]
        low, high = 1 - self.settings.clip_low, 1 + self.settings.clip_high
        clipped_N = ratio_N.clamp(low, high) * advantage_N
        gain_N = torch.minimum(ratio_N * advantage_N, clipped_N)
        mask_N = self._on_policy(batch, place_N, log_ratio_N.detach(), advantage_N)
        weight_N = batch.learn_T[place_N].to(logprob_N.dtype)
        kl_N = _kl(logprob_N, ratio_N, batch, place_N)
        loss_N = -gain_N * mask_N + batch.beta_T[place_N] * kl_N
        divisor = totals.next if self.divisor is None else self.divisor
        loss = (weight_N * loss_N).sum() / max(divisor, 1e-30)
        return loss, self._metrics(
            batch, found.entropy_N, place_N, log_ratio_N.detach(), mask_N, kl_N.detach(), low, high
        )

    def _on_policy(self, batch: PolicyBatch, place_N: Tensor, log_ratio_N: Tensor, advantage_N: Tensor) -> Tensor:
        """M of each token: 0 in a sample of negative advantage that the policy of now would hardly have written."""
        samples = len(batch.lengths)
        sample_T = torch.repeat_interleave(torch.arange(samples), torch.tensor(batch.lengths)).to(place_N.device)
        sample_N = sample_T[place_N]
        sums_S, counts_S = log_ratio_N.new_zeros(samples), log_ratio_N.new_zeros(samples)
        sums_S.index_add_(0, sample_N, -log_ratio_N)
        counts_S.index_add_(0, sample_N, torch.ones_like(log_ratio_N))
        off_S = sums_S / counts_S.clamp(min=1) > self.settings.off_policy
        return (~(off_S[sample_N] & (advantage_N < 0))).to(log_ratio_N.dtype)

    def _metrics(
        self,
        batch: PolicyBatch,
        entropy_N: Tensor,
        place_N: Tensor,
        log_ratio_N: Tensor,
        mask_N: Tensor,
        kl_N: Tensor,
        low: float,
        high: float,
    ) -> dict[str, Tensor | float]:
        fresh_N = batch.fresh_T[place_N]
        ratio_N = log_ratio_N.exp()
        k3_N = (ratio_N - log_ratio_N - 1) * fresh_N
        return {
            "chosen": float(len(place_N)),
            "entropy": entropy_N.sum(),
            "kl": kl_N.sum(),
            "clipped": ((ratio_N < low) | (ratio_N > high)).sum(),
            "off_policy": (mask_N == 0).sum(),
            "mismatch": k3_N.sum(),
            "fresh": fresh_N.sum(),
        }


def _kl(logprob_N: Tensor, ratio_N: Tensor, batch: PolicyBatch, place_N: Tensor) -> Tensor:
    """The unbiased estimate of KL(policy || reference) from tokens of the old policy (V3.2): the k3 form under the
    ratio of new to old, so that its gradient is that of the KL."""
    if batch.reference_T is None:
        return torch.zeros_like(logprob_N)
    log_q_N = batch.reference_T[place_N] - logprob_N
    return ratio_N * (log_q_N.exp() - log_q_N - 1)
