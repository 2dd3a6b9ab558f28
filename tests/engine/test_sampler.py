"""Choosing a token: greedy, nucleus, the distribution, seeds, log-probabilities."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dsv4.engine.faults import SamplingError
from dsv4.engine.sampler import Sampler, logprobs_of, sample
from dsv4.generation import SamplingParams

PROBABILITIES = [0.5, 0.3, 0.15, 0.05]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(logits_V: Tensor, params: SamplingParams, count: int, seed: int = 0) -> list[int]:
    own = generator(seed)
    return [sample(logits_V, params, own) for _ in range(count)]


@pytest.mark.parametrize("size", [2, 97, 5000])
def test_temperature_0_takes_the_largest_and_the_lowest_id_on_ties(size: int) -> None:
    logits = torch.randn(size).clamp(max=1.0)
    greedy = SamplingParams(temperature=0)
    best = [size // 3, size - 1]
    logits[best] = 9.0
    assert sample(logits, greedy, generator()) == best[0]
    logits[best[0]] = 0.0
    assert sample(logits, greedy, generator()) == best[1]


def test_greedy_draws_no_random_numbers() -> None:
    own = generator()
    before = own.get_state()
    sample(torch.randn(9), SamplingParams(temperature=0), own)
    assert torch.equal(own.get_state(), before)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1e-9, {0}), (0.3, {0}), (0.5, {0}), (0.51, {0, 1}), (0.79, {0, 1}), (0.9, {0, 1, 2}), (0.96, {0, 1, 2, 3})],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: set[int]) -> None:
    order = [2, 0, 3, 1]  # the best tokens are not the lowest ids
    logits = torch.empty(4)
    logits[order] = torch.tensor(PROBABILITIES, dtype=torch.float64).log().float()
    got = set(draws(logits, SamplingParams(top_p=top_p), 300))
    assert got == {order[rank] for rank in kept}


def test_top_p_on_ties_keeps_the_lower_ids() -> None:
    assert set(draws(torch.zeros(8), SamplingParams(top_p=0.5), 300)) == {0, 1, 2, 3}


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.9)])
def test_frequencies_follow_the_probabilities(temperature: float, top_p: float) -> None:
    logits, count = torch.tensor(PROBABILITIES).log(), 3000
    expected = (logits / temperature).softmax(0)
    if top_p < 1:
        expected = torch.tensor([*PROBABILITIES[:3], 0.0]) / sum(PROBABILITIES[:3])
    params = SamplingParams(temperature=temperature, top_p=top_p)
    seen = torch.bincount(torch.tensor(draws(logits, params, count)), minlength=4)
    possible = expected > 0
    assert not seen[~possible].any()
    wanted = count * expected[possible]
    # the chi-square statistic of 3 degrees of freedom passes 25 once in 65,000
    assert float(((seen[possible] - wanted).square() / wanted).sum()) < 25


def test_a_tiny_temperature_is_greedy() -> None:
    logits = torch.randn(50)
    assert set(draws(logits, SamplingParams(temperature=1e-7), 20)) == {int(logits.argmax())}


@pytest.mark.parametrize("top_p", [1e-46, 5e-324, 1e-30])
def test_a_share_too_small_for_a_float_keeps_the_most_likely(top_p: float) -> None:
    logits = torch.randn(50)
    assert set(draws(logits, SamplingParams(top_p=top_p), 20)) == {int(logits.argmax())}


@pytest.mark.parametrize("params", [{}, {"temperature": 1e-300}, {"min_p": 1.0}, {"top_k": 1}, {"top_p": 1e-300}])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e34, 3e38])
def test_whatever_the_finite_logits_a_likely_token_is_chosen(scale: float, params: dict[str, Any]) -> None:
    logits = torch.tensor([-1.0, 0.5, 1.0, 0.2]).mul(scale)
    logits[0] = float("-inf")
    said = set(draws(logits, SamplingParams(**params), 50))
    assert 0 not in said
    if scale > 1 or params:
        assert said == {2} or scale < 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_not_finite_choose_nothing(bad: float, temperature: float) -> None:
    logits = torch.zeros(20)
    logits[7] = bad
    with pytest.raises(SamplingError, match="the model's logits are not finite"):
        Sampler(SamplingParams(temperature=temperature)).choose(logits)
    assert Sampler(SamplingParams(temperature=temperature), vocabulary=7).choose(logits) < 7


def test_finite_logits_whose_sum_is_not_are_finite() -> None:
    assert Sampler(SamplingParams(temperature=0)).choose(torch.tensor([3e38, 3.1e38, 3e38])) == 1


def test_the_seed_decides_the_draws() -> None:
    logits, params = torch.randn(50), SamplingParams()
    assert draws(logits, params, 20, seed=4) == draws(logits, params, 20, seed=4)
    assert draws(logits, params, 20, seed=4) != draws(logits, params, 20, seed=5)


def test_logits_are_not_modified() -> None:
    logits = torch.randn(50)
    before = logits.clone()
    draws(logits, SamplingParams(top_p=0.5, temperature=0.7), 3)
    logprobs_of(logits, 3, 5)
    assert torch.equal(logits, before)


def test_logprobs_are_a_distribution_at_temperature_1_best_first() -> None:
    logits = torch.randn(12) * 3
    scores = logprobs_of(logits, 7, 12)
    assert scores.chosen == pytest.approx(float(logits[7] - logits.logsumexp(0)), abs=1e-6)
    values = [value for _, value in scores.top]
    assert sum(2.718281828459045**value for value in values) == pytest.approx(1.0, abs=1e-5)
    assert values == sorted(values, reverse=True)
    assert dict(scores.top)[7] == pytest.approx(scores.chosen)
    assert [token for token, _ in logprobs_of(logits, 7, 3).top] == logits.topk(3).indices.tolist()
    assert logprobs_of(logits, 7, 0).top == ()


def chooser(**params: Any) -> Sampler:
    return Sampler(SamplingParams(**{"temperature": 0, **params}))


@pytest.mark.parametrize(
    ("top_k", "kept"), [(1, {0}), (2, {0, 1}), (3, {0, 1, 2}), (0, {0, 1, 2, 3}), (9, {0, 1, 2, 3})]
)
def test_top_k_keeps_the_k_most_likely(top_k: int, kept: set[int]) -> None:
    logits = torch.tensor(PROBABILITIES).log()
    assert set(draws(logits, SamplingParams(top_k=top_k), 300)) == kept


@pytest.mark.parametrize(("min_p", "kept"), [(0.05, {0, 1, 2, 3}), (0.2, {0, 1, 2}), (0.5, {0, 1}), (1.0, {0})])
def test_min_p_keeps_what_is_likely_enough_beside_the_best(min_p: float, kept: set[int]) -> None:
    logits = torch.tensor(PROBABILITIES).log()
    assert set(draws(logits, SamplingParams(min_p=min_p), 400)) == kept


def test_top_p_counts_what_top_k_has_left() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert set(draws(logits, SamplingParams(top_k=2, top_p=0.5), 300)) == {0}


def test_a_bias_moves_a_token() -> None:
    logits = torch.zeros(9)
    assert chooser(logit_bias=((4, 3.0), (5, -100.0))).choose(logits) == 4
    assert set(draws(logits, SamplingParams(), 300)) == set(range(9))
    banned = Sampler(SamplingParams(logit_bias=((5, -100.0),), seed=1))
    assert 5 not in {banned.choose(logits) for _ in range(300)}


def test_penalties_grow_with_what_was_said() -> None:
    logits = torch.tensor([1.0, 0.7, 0.0])
    presence, frequency = chooser(presence_penalty=0.5), chooser(frequency_penalty=0.2)
    assert [presence.choose(logits) for _ in range(4)] == [0, 1, 0, 0]
    assert [frequency.choose(logits) for _ in range(6)] == [0, 0, 1, 0, 1, 0]


class Alternating:
    """A grammar: even tokens and odd ones in turn, the mask shorter than the vocabulary."""

    def __init__(self) -> None:
        self.said: list[int] = []

    def start(self) -> "Alternating":
        return Alternating()

    def allowed(self) -> bytes | None:
        return bytes([0b01010101 if len(self.said) % 2 == 0 else 0b10101010])

    def accept(self, token: int) -> None:
        self.said.append(token)


def test_a_constraint_decides_what_may_be_said() -> None:
    sampler = Sampler(SamplingParams(constraint=Alternating(), seed=3))
    said = [sampler.choose(torch.zeros(20)) for _ in range(100)]
    assert all(token < 8 and token % 2 == i % 2 for i, token in enumerate(said))
    assert len(set(said)) == 8


def test_where_an_answer_cannot_end_no_end_token_comes() -> None:
    """7 is the end token that the grammar knows, 3 and 5 are others of the model."""
    logits = torch.zeros(9)
    logits[5], logits[3] = 9.0, 8.0

    def firsts(stop_ids: tuple[int, ...], ends: tuple[int, ...]) -> list[int]:
        sampler = Sampler(SamplingParams(constraint=Alternating(), stop_ids=stop_ids, temperature=0), 9, 0, ends)
        return [sampler.choose(logits) for _ in range(2)]

    assert firsts((7,), (7, 5, 3)) == [0, 5]
    assert firsts((2,), (2, 5, 3)) == [0, 1]
    assert firsts((4, 7), (5, 3)) == [0, 5]
    assert firsts((), (5, 3)) == firsts((2,), ()) == [0, 5]
    # ids that the tokenizer does not have
    assert firsts((12,), (5, 30)) == [0, 5]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"top_k": -1}, "top_k must be at least 0, got -1"),
        ({"min_p": 1.5}, r"min_p must be in \[0, 1\], got 1.5"),
        ({"presence_penalty": 3}, r"presence_penalty must be in \[-2, 2\], got 3"),
        ({"logit_bias": ((3, 101.0),)}, r"logit_bias must be in \[-100, 100\], got 101.0 for token 3"),
        ({"logit_bias": ((3, float("nan")),)}, r"logit_bias must be in \[-100, 100\], got nan for token 3"),
        ({"logit_bias": ((3.0, 1.0),)}, r"logit_bias must be pairs of a token id and a number, got \(3.0, 1.0\)"),
        ({"logit_bias": ((True, 1.0),)}, r"logit_bias must be pairs of a token id and a number"),
        ({"logit_bias": {3: 1.0}}, r"logit_bias must be pairs of a token id and a number, got 3"),
        ({"stop_ids": ("a",)}, "stop_ids must be integers, got 'a'"),
        ({"constraint": "json"}, r"constraint must have start\(\), got 'json'"),
        ({"temperature": float("nan")}, r"temperature must be in \[0, 2\], got nan"),
        ({"temperature": float("inf")}, r"temperature must be in \[0, 2\], got inf"),
        ({"temperature": 10**6000}, r"temperature must be in \[0, 2\], got a very large number"),
        ({"top_p": float("nan")}, r"top_p must be in \(0, 1\], got nan"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"max_tokens": None}, "max_tokens must be an integer, got None"),
        ({"max_tokens": "x" * 10**6}, r"max_tokens must be an integer, got 'x{49}\.\.\.$"),
    ],
)
def test_impossible_parameters_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**params)


def test_random_numbers_belong_to_seed_and_position() -> None:
    """A sampler that begins later in the sequence goes on as the first one does: answers can be resumed."""
    logits, params = torch.zeros(500), SamplingParams(seed=9)
    whole, rest = Sampler(params, position=100), Sampler(params, position=107)
    said = [whole.choose(logits) for _ in range(20)]
    assert [rest.choose(logits) for _ in range(13)] == said[7:]
    assert len(set(said)) > 15
    other = Sampler(SamplingParams(seed=10), position=100)
    assert [other.choose(logits) for _ in range(20)] != said


def test_draws_of_positions_are_independent() -> None:
    """Frequencies over positions follow the probabilities, and so do pairs of neighbours."""
    logits, sampler = torch.tensor(PROBABILITIES).log(), Sampler(SamplingParams(seed=2))
    said = torch.tensor([sampler.choose(logits) for _ in range(4001)])
    pairs = torch.bincount(said[:-1] * 4 + said[1:], minlength=16)
    wanted = 4000 * torch.outer(torch.tensor(PROBABILITIES), torch.tensor(PROBABILITIES)).flatten()
    # 15 degrees of freedom pass 50 once in 85,000
    assert float(((pairs - wanted).square() / wanted).sum()) < 50
