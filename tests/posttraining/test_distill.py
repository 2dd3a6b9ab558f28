"""What distillation learns from: the objective against float64, the order of teachers, and cures for known faults."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv4.generation import FinishReason
from dsv4.posttraining.distill import DistillBatch, DistillObjective, distill_batches, with_rows
from dsv4.posttraining.distill_recipe import DistillRecipe, ObjectiveSettings
from dsv4.posttraining.distill_tokens import TokenSettings, WeighedSample, choose, loop_start, shares
from dsv4.posttraining.policy import learned_rows
from dsv4.posttraining.teachers import Teachers
from dsv4.posttraining.types import Group, Prompt, Rollout
from dsv4.training.batch import Totals
from tests.posttraining import distill_runs

PLAIN = TokenSettings(repeats=0)
NUMBERS = {"a": 0, "b": 1}


def rollout(tokens: Sequence[int], *, domain: str = "a", finished: bool = True, **changes: Any) -> Rollout:
    count = len(tokens)
    fields: dict[str, Any] = {
        "prompt": Prompt(f"{domain}/{tokens}", (0, 3, 12), domain),
        "tokens": tuple(tokens),
        "sampled": (True,) * count,
        "logprobs": (-1.0,) * count,
        "versions": (0,) * count,
        "finish": FinishReason.STOP if finished else FinishReason.LENGTH,
        "reward": 1.0,
    }
    return Rollout(**{**fields, **changes})


def weights(one: Rollout, settings: TokenSettings) -> list[float]:
    """Of the answer's tokens."""
    found = choose([Group(one.prompt, (one,))], settings, NUMBERS)
    return list(found.samples[0].weights[len(one.prompt.tokens) :]) if found.samples else [0.0] * len(one.tokens)


LOOP = [9, 8, 5, 6, 7, 5, 6, 7, 5, 6, 7, 5, 6, 7, 5]


def test_copies_of_a_loop_at_the_end_count_nothing() -> None:
    """The teacher goes on with a loop as surely as the student: such tokens look learned, and outnumber others."""
    assert weights(rollout(LOOP, finished=False), TokenSettings()) == [1.0] * 5 + [0.0] * 10
    assert weights(rollout(LOOP, finished=False), PLAIN) == [1.0] * 15
    assert loop_start(rollout(LOOP[:11], finished=False), TokenSettings()) == 11  # three copies may be meant
    assert loop_start(rollout([*LOOP, 4, 3], finished=False), TokenSettings()) == 17  # it found its way out
    assert weights(rollout([6, 5, 5, 5, 5, 1]), TokenSettings()) == [1.0] * 6  # 10000 is no loop
    found = choose([Group(rollout(LOOP).prompt, (rollout(LOOP, finished=False),))], TokenSettings(), NUMBERS)
    assert (found.repeating, found.looped) == (1, 10)


def test_what_follows_a_mistake_can_be_left_out() -> None:
    settings = TokenSettings(repeats=0, wrong_prefix=2)
    assert weights(rollout([5, 6, 7, 1], reward=0.0), settings) == [1, 1, 0, 0]
    assert weights(rollout([5, 6, 7, 1], reward=1.0), settings) == [1, 1, 1, 1]
    assert weights(rollout([5, 6, 7, 1], reward=0.0), PLAIN) == [1, 1, 1, 1]


def test_late_tokens_can_count_less() -> None:
    assert weights(rollout([5, 6, 7, 1]), TokenSettings(half_life=2)) == pytest.approx([1, 0.5**0.5, 0.5, 0.5**1.5])


def test_cut_answers_can_be_masked_and_special_ids_left_out() -> None:
    assert weights(rollout([5, 6], finished=False), TokenSettings(cut="mask")) == [0, 0]
    assert weights(rollout([5, 6, 1], finished=True), TokenSettings(cut="mask")) == [1, 1, 1]
    assert weights(rollout([5, 2, 6, 1]), TokenSettings(without=(2,))) == [1, 0, 1, 1]


def test_tool_results_and_broken_rollouts_are_not_learned() -> None:
    assert weights(rollout([5, 6, 7, 1], sampled=(True, False, False, True)), PLAIN) == [1, 0, 0, 1]
    broken = [rollout([5, 1], error="a tool hung", reward=None), rollout([5], finish=FinishReason.ERROR)]
    found = choose([Group(broken[0].prompt, tuple(broken))], PLAIN, NUMBERS)
    assert (found.broken, found.samples) == (2, [])


def test_a_domain_without_a_teacher_is_named() -> None:
    one = rollout([5, 1], domain="c")
    with pytest.raises(ValueError, match=r"teachers\.c is missing"):
        choose([Group(one.prompt, (one,))], PLAIN, NUMBERS)


def samples() -> list[WeighedSample]:
    """Long answers in one domain, short ones in the other, mixed."""
    made = [rollout([20 + i, 30, 31, 32, 33, 1], domain="a") for i in range(3)]
    made += [rollout([50 + i, 1], domain="b") for i in range(3)]
    groups = [Group(one.prompt, (one,)) for one in (made[0], made[3], made[1], made[4], made[2], made[5])]
    return choose(groups, PLAIN, NUMBERS).samples


def test_batches_are_ordered_by_teacher_and_never_mix_two() -> None:
    made = distill_batches(samples(), {"a": 1.0, "b": 1.0}, ("a", "b"), micro=20)
    order = [batch.teacher for batch in made]
    assert order == sorted(order)
    assert set(order) == {0, 1}
    assert sum(len(batch.lengths) for batch in made) == 6
    assert all(int(batch.domain_T.unique()) == batch.teacher for batch in made)


def test_a_domain_counts_as_its_weight_says_however_long_its_answers_are() -> None:
    wanted = {"a": 1.0, "b": 3.0}
    for normalise, share in (("domains", 3.0), ("tokens", 3 * 6 / 18)):
        factors = shares(samples(), wanted, normalise)  # type: ignore[arg-type]
        sums = dict.fromkeys(wanted, 0.0)
        for batch in distill_batches(samples(), factors, ("a", "b"), 100):
            sums["ab"[batch.teacher]] += float(batch.weights(1).sum())
        assert sums["b"] / sums["a"] == pytest.approx(share)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Teachers:
    place = tmp_path_factory.mktemp("teachers")
    paths = [distill_runs.write(place / domain, distill_runs.specialist(domain)) for domain in ("a", "b")]
    return Teachers(paths, 97, place / "cache", resident=2)


def step_batches(teachers: Teachers) -> list[DistillBatch]:
    return with_rows(distill_batches(samples(), {"a": 0.2, "b": 0.7}, ("a", "b"), 20), teachers, None)


def test_the_loss_is_the_direct_sum_in_float64(teachers: Teachers) -> None:
    """Equation 29 token by token, from whole distributions of both models."""
    batches, student = step_batches(teachers), distill_runs.model()
    totals = Totals.of(batches)
    objective = DistillObjective(ObjectiveSettings(), ("a", "b"), teachers)
    loss = sum(float(objective(student, batch, totals)[0].detach()) for batch in batches)
    wanted = total = 0.0
    for batch in batches:
        own = distill_runs.specialist("ab"[batch.teacher])
        with torch.no_grad():
            place, rows = learned_rows(student, batch)
            p = student.head(rows).double().softmax(1)
            q = own.head(learned_rows(own, batch)[1]).double().softmax(1)
        counts = batch.learn_T[place + 1].double()
        wanted += float((counts * (p * (p / q).log()).sum(1)).sum())
        total += float(counts.sum())
    assert loss == pytest.approx(wanted / total, rel=1e-5)


@pytest.mark.parametrize("kind", ["reverse", "forward", "jsd", "top-k", "sampled", "sft"])
def test_every_objective_reports_the_exact_kl_and_has_a_gradient(kind: Any, teachers: Teachers) -> None:
    batches, found = step_batches(teachers), {}
    for name in ("reverse", kind):
        student = distill_runs.model()
        objective = DistillObjective(ObjectiveSettings(kind=name), ("a", "b"), teachers)
        loss, metrics = objective(student, batches[0], Totals.of(batches))
        loss.backward()
        assert student.head.weight.grad is not None
        assert float(student.head.weight.grad.abs().max()) > 0
        found[name] = {key: float(torch.as_tensor(value).detach()) for key, value in metrics.items()}
    assert found[kind] == pytest.approx(found["reverse"], rel=1e-5)
    assert found[kind]["count.a"] == found[kind]["chosen"] > 0


def test_the_sampled_estimate_has_the_gradient_of_the_kl_in_the_mean(teachers: Teachers) -> None:
    """Over all ids that could have been chosen, each as often as the student chooses it: unbiased at one position, and
    each single estimate far from it."""
    (batch, *_), student = step_batches(teachers), distill_runs.model()
    with torch.no_grad():
        rows = learned_rows(student, batch)[1]
        log_p = student.head(rows).log_softmax(1)[0].double()
        log_q = (batch.rows.read() @ teachers.head(0).T).log_softmax(1)[0].double()  # type: ignore[union-attr]
    p = log_p.exp()
    exact = p * (log_p - log_q - (p * (log_p - log_q)).sum())
    each = -(log_q - log_p)[:, None] * (torch.eye(len(p), dtype=p.dtype) - p)  # by the chosen id
    torch.testing.assert_close((p[:, None] * each).sum(0), exact, atol=1e-6, rtol=1e-6)
    spread = (p * (each - exact).square().sum(1)).sum().sqrt()
    assert float(spread) > 10 * float(exact.norm())


def test_settings_are_checked_by_name(tmp_path: Path) -> None:
    def made(**changes: Any) -> DistillRecipe:
        return distill_runs.recipe(tmp_path, **changes)

    for field, message in (
        ({"teachers": {}}, "teachers must not be empty"),
        ({"teachers": {"a": {"path": "x", "weight": 0}}}, "weight must be positive"),
        ({"objective": {"kind": "other"}}, "objective.kind must be"),
        ({"objective": {"teacher_share": 2}}, "objective.teacher_share must be in"),
        ({"tokens": {"repeats": 1}}, "tokens.repeats must be 0 or at least 2"),
        ({"cache": {"resident": 0}}, "cache.resident must be at least 1"),
        ({"objective": {"kind": "sft"}, "rollouts": {"asynchronous": True}}, "rollouts.asynchronous"),
        ({"distil": {}}, "distil is not a field"),
    ):
        with pytest.raises(ValueError, match=message):
            made(**field)
    shared = made(teachers={d: {"path": "one"} for d in "ab"} | {"c": {"path": "two"}})
    assert shared.numbers == {"a": 0, "b": 0, "c": 1}
