"""Replayed choices: experts, compressed entries and kept ids of the sampler, in the training pass."""

import pytest
import torch
from torch import Tensor

from dsv4.engine import Engine
from dsv4.generation import SamplingParams, TokenTrace
from dsv4.kernels.indexer_loss import IndexedAttention
from dsv4.model.step import Regime
from dsv4.model.transformer import Transformer
from dsv4.posttraining.policy import PolicyBatch, policy_logprobs
from dsv4.posttraining.replay import Replay
from dsv4.posttraining.types import Sample
from dsv4.testing.tiny import tiny_model


class Recorder:
    """What a pass chooses in each layer."""

    def __init__(self) -> None:
        self.routes: dict[int, Tensor] = {}
        self.entries: dict[int, Tensor] = {}

    def routed(self, layer: int, score_TE: Tensor, ids_TK: Tensor) -> None:
        self.routes[layer] = ids_TK

    def indexed(self, seen: IndexedAttention) -> None:
        if seen.chosen_TK is not None:
            self.entries[seen.layer] = seen.chosen_TK


def choices(model: Transformer, tokens: Tensor, regime: Regime | None = None) -> tuple[Recorder, Tensor]:
    seen = Recorder()
    given = regime or Regime()
    with torch.no_grad():
        x_TSD = model.hidden(
            tokens,
            model.pack([len(tokens)]),
            observer=seen,
            regime=Regime(routes=given.routes, entries=given.entries, indexed=seen.indexed),
        )
        return seen, model.logits(x_TSD)


def trace_of(seen: Recorder, length: int) -> TokenTrace:
    """As an engine tells it: rows without padding."""
    return TokenTrace(
        0,
        {layer: ids_TK.tolist() for layer, ids_TK in seen.routes.items()},
        {layer: [[e for e in row if e >= 0] for row in rows.tolist()] for layer, rows in seen.entries.items()},
        [None] * length,
    )


TOKENS = torch.randint(2, 97, (90,), generator=torch.Generator().manual_seed(3))


def test_a_pass_told_its_own_choices_is_the_pass_that_chose_them() -> None:
    model = tiny_model()
    seen, logits = choices(model, TOKENS)
    assert set(seen.entries) == {1, 3}
    replay = Replay.of([trace_of(seen, 90)], [90])
    _, again = choices(model, TOKENS, Regime(routes=replay.routes, entries=replay.entries))
    assert torch.equal(again, logits)


def test_another_models_choices_are_followed() -> None:
    seen, _ = choices(tiny_model(seed=1), TOKENS)
    model = tiny_model(seed=2)
    own, plain = choices(model, TOKENS)
    replay = Replay.of([trace_of(seen, 90)], [90])
    told, logits = choices(model, TOKENS, Regime(routes=replay.routes, entries=replay.entries))
    learned = [layer for layer in seen.routes if layer >= 1]
    assert learned
    for layer in learned:
        assert not torch.equal(own.routes[layer], seen.routes[layer])
        assert torch.equal(told.routes[layer], seen.routes[layer])
    for layer, entries in seen.entries.items():
        assert not torch.equal(own.entries[layer], entries)
        assert torch.equal(told.entries[layer], entries)
    assert not torch.equal(logits, plain)


def test_positions_without_a_trace_are_the_models_own() -> None:
    """A trace of the first 60 positions of another model, a second sequence without any."""
    seen, _ = choices(tiny_model(seed=1), TOKENS)
    trace = trace_of(seen, 90)
    part = TokenTrace(
        0,
        {layer: rows[:60] for layer, rows in trace.experts.items()},
        {layer: rows[:60] for layer, rows in trace.entries.items()},
        [None] * 60,
    )
    model = tiny_model(seed=2)
    replay = Replay.of([part, None], [90, 50])
    told = Recorder()
    tokens = torch.cat([TOKENS, TOKENS[:50]])
    regime = Regime(routes=replay.routes, entries=replay.entries, indexed=told.indexed)
    with torch.no_grad():
        model.hidden(tokens, model.pack([90, 50]), observer=told, regime=regime)
    own, _ = choices(model, TOKENS[:50])
    assert torch.equal(told.routes[1][:60], seen.routes[1][:60])
    assert not torch.equal(told.routes[1][60:90], seen.routes[1][60:90])
    assert torch.equal(told.routes[1][90:], own.routes[1])
    for layer in (1, 3):
        assert torch.equal(told.entries[layer][:60], seen.entries[layer][:60])
        assert torch.equal(told.entries[layer][90:], own.entries[layer])


def test_routers_learn_through_replayed_choices() -> None:
    """Gate weights come from all affinities; with the recorded scores in their place this gradient would be zero."""
    model = tiny_model()
    seen, _ = choices(tiny_model(seed=1), TOKENS)
    replay = Replay.of([trace_of(seen, 90)], [90])
    x_TSD = model.hidden(TOKENS, model.pack([90]), regime=Regime(routes=replay.routes, entries=replay.entries))
    model.head_rows(x_TSD).square().sum().backward()
    for layer in (1, 2, 3):
        grad = model.get_parameter(f"layers.{layer}.ffn.gate.weight").grad
        assert grad is not None
        assert float(grad.abs().max()) > 0


def test_layers_that_read_everything_need_no_table() -> None:
    """32 tokens have 8 entries, which is all that 8 choices take: the faster pass over ranges runs."""
    trace = TokenTrace(0, {}, {1: [range((i + 1) // 4) for i in range(32)]}, [None] * 32)
    assert not Replay.of([trace], [32]).entries
    shorter = TokenTrace(0, {}, {1: [[] for _ in range(32)]}, [None] * 32)
    assert Replay.of([shorter], [32]).entries[1].shape == (32, 1)


def sampled(model: Transformer, params: SamplingParams) -> Sample:
    """An answer of the real engine, and the log-probabilities it gave."""
    engine = Engine(model, context_length=256, sequences=2)
    prompt = TOKENS[:40].tolist()
    tokens, logprobs = [], []
    for event in engine.generate(prompt, params):
        if event.token is not None and event.logprobs is not None:
            tokens.append(event.token)
            logprobs.append(event.logprobs.chosen)
    learn = [False] * 40 + [True] * len(tokens)
    return Sample([*prompt, *tokens], learn, [0.0] * 40 + logprobs, 1.0, "d", "k")


@pytest.mark.parametrize("others", [0, 3])
def test_the_learner_sees_the_engines_probabilities_bit_for_bit(others: int) -> None:
    """fp32, the same kernels: packed beside other samples or alone, every log-probability is the engine's own."""
    model = tiny_model()
    params = [SamplingParams(max_tokens=80, logprobs=True, seed=seed) for seed in range(1 + others)]
    samples = [sampled(model, one) for one in params]
    assert sum(map(len, (sample.tokens for sample in samples))) > 50 * len(samples)
    batch = PolicyBatch.of(samples, {"d": 0.0})
    with torch.no_grad():
        found = policy_logprobs(model, batch)
    assert torch.equal(found.logprob_N, batch.sampled_T[found.place_N])
    assert len(found.place_N) == sum(sum(sample.learn) for sample in samples)


def test_truncated_choices_are_renormalised_and_without_it_the_ratio_is_biased() -> None:
    """Kept sets of the two likeliest ids: the ratio is 1 with the mask replayed, and off by the kept mass without."""
    model = tiny_model()
    with torch.no_grad():
        log_TV = model.logits(model.hidden(TOKENS, model.pack([90]))).log_softmax(1)
    best = log_TV.topk(2).indices
    kept = [best[i].tolist() if TOKENS[i + 1] in best[i] else None for i in range(89)]
    tokens = TOKENS.clone()
    tokens[60] = best[59, 1]
    with torch.no_grad():
        log_TV = model.logits(model.hidden(tokens, model.pack([90]))).log_softmax(1)
    kept[59] = best[59].tolist()
    mass = float(log_TV[59, kept[59]].logsumexp(0))
    logprobs = [0.0] * 90
    logprobs[60] = float(log_TV[59, tokens[60]]) - mass
    learn = [i == 60 for i in range(90)]
    trace = TokenTrace(0, {}, {}, [kept[59] if i == 59 else None for i in range(90)])

    def log_ratio(with_mask: bool) -> float:
        given = trace if with_mask else None
        batch = PolicyBatch.of([Sample(tokens.tolist(), learn, logprobs, 1.0, "d", "k", trace=given)], {"d": 0.0})
        with torch.no_grad():
            found = policy_logprobs(model, batch)
        return float(found.logprob_N[0] - batch.sampled_T[60])

    assert abs(log_ratio(True)) < 1e-5
    assert log_ratio(False) == pytest.approx(mass, abs=1e-4)
    assert mass < -0.5
    wrong = TokenTrace(0, {}, {}, [[5] if i == 59 else None for i in range(90)])
    with pytest.raises(ValueError, match="sample k: token 60 is not among the ids"):
        PolicyBatch.of([Sample(tokens.tolist(), learn, logprobs, 1.0, "d", "k", trace=wrong)], {"d": 0.0})
