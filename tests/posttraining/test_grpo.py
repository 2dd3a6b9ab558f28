"""Advantages, objective and their known traps: each test fails without the cure."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dsv4.generation import FinishReason
from dsv4.model.transformer import Transformer
from dsv4.posttraining.grpo import PolicyLoss, judge
from dsv4.posttraining.learner import Learner
from dsv4.posttraining.policy import PolicyBatch, pack_samples, policy_logprobs
from dsv4.posttraining.settings import EffortSettings, KlSettings, PolicySettings, RateSettings
from dsv4.posttraining.types import Effort, Group, Prompt, Rollout, Sample
from dsv4.testing.tiny import tiny_model
from dsv4.training.batch import Totals
from dsv4.training.settings import OptimizerSettings

EFFORTS = {Effort.HIGH: EffortSettings()}
PROMPT = Prompt("p", (0, 5, 6), "d")


def rollout(
    reward: float | None, length: int = 4, finish: FinishReason = FinishReason.STOP, version: int = 0, seed: int = 0
) -> Rollout:
    tokens = torch.randint(2, 97, (length,), generator=torch.Generator().manual_seed(seed + length)).tolist()
    return Rollout(PROMPT, tuple(tokens), (True,) * length, (-4.5,) * length, (version,) * length, finish, reward)


def advantages(*rollouts: Rollout, version: int = 0, **settings: object) -> list[float]:
    found = judge([Group(PROMPT, rollouts)], PolicySettings(**settings), EFFORTS, version)  # type: ignore[arg-type]
    return [sample.advantage for sample in found.samples]


def test_advantages_are_rewards_less_their_mean() -> None:
    rollouts = [rollout(reward) for reward in (1.0, 0.0, 0.0, 0.0)]
    assert advantages(*rollouts) == [0.75, -0.25, -0.25, -0.25]
    scaled = advantages(*rollouts, std=True)
    assert scaled == pytest.approx([a / math.sqrt(0.1875) for a in (0.75, -0.25, -0.25, -0.25)])


def test_a_broken_reward_costs_its_own_rollout_alone() -> None:
    """NaN in a mean would make every advantage of the group NaN."""
    broken = [rollout(float("nan")), rollout(None), rollout(1.0, finish=FinishReason.ERROR), rollout(math.inf)]
    group = Group(PROMPT, (rollout(1.0), *broken, rollout(0.0)))
    found = judge([group], PolicySettings(), EFFORTS, 0)
    assert [sample.advantage for sample in found.samples] == [0.5, -0.5]
    assert found.broken == 4
    lonely = judge([Group(PROMPT, (rollout(1.0), rollout(None)))], PolicySettings(), EFFORTS, 0)
    assert (lonely.small, lonely.samples) == (1, [])
    empty = judge([Group(PROMPT, ())], PolicySettings(), EFFORTS, 0)
    assert (empty.small, empty.samples) == (1, [])


def test_groups_that_compare_nothing_are_skipped_and_counted() -> None:
    """Their zero advantages would still dilute the mean over tokens."""
    same = Group(PROMPT, tuple(rollout(1.0) for _ in range(3)))
    mixed = Group(PROMPT, (rollout(1.0), rollout(0.0)))
    found = judge([same, mixed], PolicySettings(), EFFORTS, 0)
    assert found.equal == 1
    assert len(found.samples) == 2
    assert found.rewards == [1.0, 1.0, 1.0, 1.0, 0.0]


def test_a_stale_token_drops_its_whole_group() -> None:
    """The oldest tokens belong to the longest answers: without these alone, length would be punished."""
    mixed = replace(rollout(0.0), versions=(3, 9, 9, 9))
    fresh = [rollout(reward, version=9) for reward in (1.0, 0.0)]
    groups = [Group(PROMPT, (*fresh, mixed)), Group(PROMPT, tuple(fresh))]
    found = judge(groups, PolicySettings(stale=4), EFFORTS, 9)
    assert found.stale == 1
    assert [sample.advantage for sample in found.samples] == [0.5, -0.5]
    assert len(advantages(*fresh, mixed, version=9, stale=6)) == 3


def test_length_costs_reward_outside_the_window_of_the_mode() -> None:
    settings = EffortSettings(tokens=100, window=10, slope=0.2, most=0.3)
    assert [settings.penalty(n) for n in (1, 10, 15, 20)] == pytest.approx([0, 0, 0.1, 0.2])
    assert settings.penalty(1000) == 0.3
    efforts = {Effort.HIGH: settings}
    found = judge([Group(PROMPT, (rollout(1.0, 10), rollout(1.0, 20)))], PolicySettings(), efforts, 0)
    assert [sample.advantage for sample in found.samples] == pytest.approx([0.1, -0.1])
    assert (found.rewards, found.penalised) == ([1.0, 1.0], pytest.approx([1.0, 0.8]))
    with pytest.raises(ValueError, match=r"efforts\.high is missing"):
        judge([Group(PROMPT, (rollout(1.0), rollout(0.0)))], PolicySettings(), {}, 0)


def sample(
    length: int, advantage: float, model: Transformer | None = None, shift: float = 0.0, **more: object
) -> Sample:
    """A sample whose old probabilities are the model's own times exp(-shift), all but two tokens learned."""
    tokens = torch.randint(2, 97, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    learn = [i >= 2 for i in range(length)]
    made = Sample(tokens, learn, [0.0] * length, advantage, "d", "k", **more)  # type: ignore[arg-type]
    if model is None:
        return made
    with torch.no_grad():
        found = policy_logprobs(model, PolicyBatch.of([made], {"d": 0.0}))
    return replace(made, logprobs=[0.0, 0.0, *(float(value) - shift for value in found.logprob_N)])


def loss_of(model: Transformer, samples: list[Sample], beta: float = 0.0, **settings: object) -> Tensor:
    by_sequence = settings.get("normalise") == "sequence"
    batch = PolicyBatch.of(samples, {"d": beta}, by_sequence=by_sequence)
    return PolicyLoss(PolicySettings(**settings))(model, batch, Totals.of([batch]))[0]  # type: ignore[arg-type]


def test_the_loss_is_the_formula() -> None:
    """Ratios above and below one, both signs of advantages, a reference: against plain arithmetic in float64."""
    model, reference = tiny_model(), tiny_model(seed=4)
    samples = [sample(9, 1.0, model, 0.4), sample(7, -0.5, model, -0.3), sample(8, 0.7, model, 0.05)]
    batch = PolicyBatch.of(samples, {"d": 0.1}).with_reference(reference)
    settings = PolicySettings(clip_low=0.2, clip_high=0.28, off_policy=1e9)
    loss, metrics = PolicyLoss(settings)(model, batch, Totals.of([batch]))
    total, count = 0.0, 0
    for one in samples:
        tokens = torch.tensor(one.tokens)
        with torch.no_grad():
            new, ref = (
                m.logits(m.hidden(tokens, m.pack([len(tokens)]))).double().log_softmax(1) for m in (model, reference)
            )
        for t in range(2, len(tokens)):
            log_new, log_ref = float(new[t - 1, tokens[t]]), float(ref[t - 1, tokens[t]])
            ratio = math.exp(log_new - one.logprobs[t])
            gain = min(ratio * one.advantage, min(max(ratio, 0.8), 1.28) * one.advantage)
            q = log_ref - log_new
            total += -gain + 0.1 * ratio * (math.exp(q) - q - 1)
            count += 1
    assert float(loss.detach()) == pytest.approx(total / count, rel=1e-5)
    assert metrics["chosen"] == count
    assert float(metrics["clipped"]) == 7 + 5


def test_the_kl_has_the_gradient_of_the_kl() -> None:
    """Under the policy's own samples its mean gradient is that of the exact KL over the vocabulary. Without the ratio
    before it (as GRPO had it first) the expected gradient is that of another divergence."""
    torch.manual_seed(0)
    z = torch.randn(6, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(6, dtype=torch.float64).log_softmax(0)
    log = z.log_softmax(0)
    (wanted,) = torch.autograd.grad((log.exp() * (log - reference)).sum(), z)
    old = log.detach()
    for with_ratio in (True, False):
        log = z.log_softmax(0)
        ratio = (log - old).exp() if with_ratio else torch.ones(6, dtype=torch.float64)
        q = reference - log
        estimate = (old.exp() * ratio * (q.exp() - q - 1)).sum()  # the mean over all tokens that could be drawn
        (got,) = torch.autograd.grad(estimate, z)
        assert torch.allclose(got, wanted, atol=1e-12) == with_ratio


def per_token(model: Transformer, samples: list[Sample], **settings: object) -> list[float]:
    """How much a learned token of each sample counts: minus the loss's derivative by one token's log-probability,
    divided by the advantage. At ratio 1 that is the token's weight."""
    weights = []
    for i in range(len(samples)):
        only = [replace(s, advantage=s.advantage if j == i else 0.0) for j, s in enumerate(samples)]
        loss = float(loss_of(model, only, **settings).detach())
        weights.append(-loss / (samples[i].advantage * sum(samples[i].learn)))
    return weights


def test_a_token_counts_the_same_in_short_and_long_finished_and_cut_answers() -> None:
    """Divided by each answer's own length, tokens of a short right answer would count more, and those of a long wrong
    one less: length grows for no reason (Dr.GRPO)."""
    model = tiny_model()
    samples = [sample(8, 1.0, model), sample(26, -1.0, model, finished=False)]
    even = per_token(model, samples)
    assert even[0] == pytest.approx(even[1], rel=1e-4)
    biased = per_token(model, samples, normalise="sequence")
    assert biased[0] == pytest.approx(4 * biased[1], rel=1e-4)
    batch = PolicyBatch.of(samples, {"d": 0.0})
    constant = PolicyLoss(PolicySettings(normalise="constant"), divisor=200.0)
    whole = float(constant(model, batch, Totals.of([batch]))[0].detach())
    assert whole == pytest.approx((-6 * 1.0 + 24 * 1.0) / 200, rel=1e-4)


def test_masked_cut_answers_leave_the_mean_and_not_the_divisor() -> None:
    """A masked answer that still counted in the number of tokens would weaken all others."""
    rollouts = [rollout(1.0, 5), rollout(0.0, 5), rollout(0.0, 50, FinishReason.LENGTH)]
    found = judge([Group(PROMPT, tuple(rollouts))], PolicySettings(cut="mask"), EFFORTS, 0)
    assert [sample.advantage for sample in found.samples] == pytest.approx([2 / 3, -1 / 3])
    assert found.masked == 1
    batch = PolicyBatch.of(found.samples, {"d": 0.0})
    assert Totals.of([batch]).next == 10


def test_tokens_of_the_environment_are_never_learned() -> None:
    """Tool results between the turns: no gradient, no count, whatever log-probabilities stand there."""
    sampled = (True, True, False, False, True)
    made = Rollout(PROMPT, (9, 8, 7, 6, 5), sampled, (-4.0, -4.0, 0.0, 0.0, -4.0), (0,) * 5, FinishReason.STOP, 1.0)
    packed = PolicyBatch.of([Sample.of(made, 1.0)], {"d": 0.0})
    assert packed.learn_T.tolist() == [0, 0, 0, 1, 1, 0, 0, 1]
    model = tiny_model()
    _, metrics = PolicyLoss(PolicySettings())(model, packed, Totals.of([packed]))
    assert metrics["chosen"] == 3
    head = torch.autograd.grad(PolicyLoss(PolicySettings())(model, packed, Totals.of([packed]))[0], model.head.weight)
    free = replace(packed, sampled_T=torch.where(packed.learn_T > 0, packed.sampled_T, torch.tensor(-99.0)))
    again = torch.autograd.grad(PolicyLoss(PolicySettings())(model, free, Totals.of([free]))[0], model.head.weight)
    assert torch.equal(head[0], again[0])


def test_wrong_answers_that_the_policy_would_not_write_any_more_count_nothing() -> None:
    model = tiny_model()
    near, far = sample(9, -1.0, model, -0.05), sample(9, -1.0, model, 0.5)
    drifted = replace(near, logprobs=[value + 0.5 for value in near.logprobs])
    assert float(loss_of(model, [drifted]).detach()) == 0
    assert float(loss_of(model, [drifted], off_policy=10.0).detach()) > 0
    assert float(loss_of(model, [near]).detach()) > 0
    assert float(loss_of(model, [far]).detach()) > 0  # now more likely: pushing it down is on target
    right = replace(drifted, advantage=1.0)
    assert float(loss_of(model, [right]).detach()) < 0


def test_micro_batches_do_not_change_the_update() -> None:
    model = tiny_model()
    samples = [sample(n, a, model) for n, a in ((9, 1.0), (30, -0.5), (12, 0.3), (20, -0.7))]
    norms = []
    for micro in (1, 45, 1000):
        packed = pack_samples(samples, micro)
        assert sorted(len(s.tokens) for part in packed for s in part) == [9, 12, 20, 30]
        learner = Learner(tiny_model(), optimizer=OptimizerSettings(kind="adamw"))
        batches = [PolicyBatch.of(part, {"d": 0.0}) for part in packed]
        norms.append(learner.step(batches, PolicyLoss(PolicySettings()), lr=1e-4)["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4) == pytest.approx(norms[2], rel=1e-4)


def test_settings_say_what_is_wrong() -> None:
    for build, message in (
        (lambda: PolicySettings(clip_low=0), "policy.clip_low must be positive"),
        (lambda: PolicySettings(updates=0), "policy.updates must be at least 1"),
        (lambda: KlSettings(domains={"maths": -1.0}), "kl.domains.maths must be at least 0"),
        (lambda: EffortSettings(slope=0.1), "slope needs a window"),
        (lambda: RateSettings(peak=0.0), "lr.peak must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            build()


def test_rates_stay_or_fall_as_a_cosine() -> None:
    still, falling = RateSettings(peak=1.0, warmup=4), RateSettings(peak=1.0, final=0.1, shape="cosine", warmup=2)
    assert [still.at(step, 100) for step in (0, 3, 4, 99)] == [0.25, 1.0, 1.0, 1.0]
    assert falling.at(2, 102) == 1.0
    assert falling.at(52, 102) == pytest.approx(0.55)
    assert falling.at(102, 102) == pytest.approx(0.1)
    assert falling.at(27, 102) > 1.0 - 0.9 * 0.25  # above the straight line in its first half
