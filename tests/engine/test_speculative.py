"""Speculation: the same text and the same distribution, drafts that are worth something, places given back."""

import pytest
import torch

from dsv4.engine import Engine
from dsv4.generation import FinishReason, SamplingParams
from dsv4.kernels import native
from dsv4.testing.tiny import tiny_config, tiny_model

VOCABULARY, BINS = 97, 12


def engine_of(speculate: bool, **options: object) -> Engine:
    engine = Engine(tiny_model(), context_length=256, cache_tokens=16384, sequences=48, speculate=speculate, **options)  # type: ignore[arg-type]
    engine.ends = frozenset()
    return engine


@torch.inference_mode()
def second_token_probabilities(prompt: list[int]) -> torch.Tensor:
    """P(t2) = sum over t1 of P(t1) P(t2 | t1), by the model alone."""
    model = tiny_model()
    logits_V = model.logits(model.hidden(torch.tensor(prompt), model.pack([len(prompt)])))[-1]
    rows = torch.tensor([[*prompt, token] for token in range(VOCABULARY)])
    last = torch.arange(1, VOCABULARY + 1) * rows.shape[1] - 1
    x_TSD = model.hidden(rows.flatten(), model.pack([rows.shape[1]] * VOCABULARY))
    return logits_V.softmax(0) @ model.logits(x_TSD[last]).softmax(1)


def test_the_distribution_of_a_speculated_token_is_the_models() -> None:
    """Chi-square over bins of equal weight, 11 degrees of freedom: 40 is passed once in 28,000."""
    prompt, count = [5, 6, 7], 960
    engine = engine_of(True)
    requests = [engine.submit(prompt, SamplingParams(max_tokens=3, seed=seed)) for seed in range(count)]
    while engine.busy:
        engine.step()
    wanted_V = second_token_probabilities(prompt)
    bin_V = ((wanted_V.cumsum(0) - wanted_V / 2) * BINS).long().clamp(max=BINS - 1)
    seen = torch.bincount(bin_V[torch.tensor([r.tokens[len(prompt) + 1] for r in requests])], minlength=BINS)
    expected = torch.zeros(BINS).index_add(0, bin_V, wanted_V) * count
    assert float(((seen - expected).square() / expected).sum()) < 40
    assert engine.counts.drafted >= count


@pytest.mark.skipif(not native.available(), reason="the same seed says the same bit for bit on native kernels only")
def test_every_seed_says_what_it_says_without() -> None:
    said = []
    for speculate in (False, True):
        engine = engine_of(speculate)
        jobs = [SamplingParams(max_tokens=1 + n % 9, seed=n, top_p=0.9, temperature=0.5 + n % 2) for n in range(40)]
        requests = [engine.submit([n % 5 + 1] * (1 + n), params) for n, params in enumerate(jobs)]
        while engine.busy:
            engine.step()
        assert engine.check_integrity()
        said.append([r.tokens for r in requests])
    assert said[0] == said[1]


def test_an_answer_ends_inside_an_accepted_draft() -> None:
    """Stop ids and max_tokens hold for the second token of a step as for the first."""
    engine = engine_of(True)
    free = engine.submit([3, 4], SamplingParams(max_tokens=12, temperature=0))
    while engine.busy:
        engine.step()
    said = free.tokens[2:]
    runner, real = engine.runner, engine.runner.draft

    def right(works: list, ran: object) -> None:
        real(works, ran)  # type: ignore[arg-type]
        for work in works:
            position = len(work.request.tokens) - 2
            if work.request.drafts and position < len(said):
                work.request.drafts = [said[position]]

    runner.draft = right  # type: ignore[method-assign,assignment]
    for limit in range(1, 8):
        request = engine.submit([3, 4], SamplingParams(max_tokens=limit, temperature=0))
        stop = engine.submit([3, 4], SamplingParams(max_tokens=30, temperature=0, stop_ids=(said[limit],)))
        ends = {}
        while engine.busy:
            ends |= {r: e.finish for r, e in engine.step() if e.finish is not None}
        assert request.tokens[2:] == said[:limit]
        assert stop.tokens[2:] == said[: said.index(said[limit]) + 1]
        assert ends == {request: FinishReason.LENGTH, stop: FinishReason.STOP}
    assert engine.check_integrity()


def test_a_model_without_a_prediction_block_cannot_speculate() -> None:
    model = tiny_model(tiny_config(num_nextn_predict_layers=0, compress_ratios=(0, 4, 128, 4)))
    with pytest.raises(ValueError, match="speculate needs a model with a prediction block"):
        Engine(model, context_length=256, speculate=True)
