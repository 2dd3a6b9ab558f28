"""Thousands of random requests: everyone ends once, every place comes back."""

import random

import pytest

from dsv4.cache.prefix import ReusePolicy, Windows
from dsv4.engine import Engine
from dsv4.engine.request import Request, RequestStatus
from dsv4.generation import BusyError, RequestOptions, SamplingParams
from dsv4.testing.tiny import tiny_config, tiny_model


def soak(count: int, windows: Windows, speculate: bool, seed: int) -> Engine:
    """Lengths, cancels, duplicates, shared beginnings, priorities, a queue that fills."""
    small = tiny_config(num_hidden_layers=2, compress_ratios=(4, 128, 0), n_routed_experts=2)
    engine = Engine(
        tiny_model(small),
        context_length=512,
        cache_tokens=1536,
        sequences=5,
        step_tokens=96,
        reuse=ReusePolicy(windows, 256, 7),
        speculate=speculate,
        lookup=16 if windows == "full" else 0,
        queue=20,
    )
    engine.ends = frozenset()
    rng = random.Random(seed)
    families = [[rng.randrange(97) for _ in range(400)] for _ in range(4)]
    live: list[Request] = []
    ends: dict[Request, int] = {}
    made = 0

    def step() -> None:
        for request, event in engine.step():
            ends[request] = ends.get(request, 0) + (event.finish is not None)

    while made < count:
        family, length = rng.choice(families), rng.choice([1, 3, 60, 127, 128, 131, 255, 256, 300, 390])
        prompt = family[:length] + [rng.randrange(97)] * rng.choice([0, 0, 1, 5])
        params = SamplingParams(max_tokens=rng.choice([1, 2, 9, 40, 120]), seed=made)
        options = RequestOptions(rng.choice("ab"), (length // 2,), rng.choice([0, 0, 0, 1]))
        try:
            live.append(engine.submit(prompt, params, options))
            made += 1
        except BusyError:
            step()
        if rng.random() < 0.2 and live:
            engine.cancel(live.pop(rng.randrange(len(live))))
        for _ in range(rng.randrange(4)):
            step()
    while engine.busy:
        step()
    assert all(request.status is RequestStatus.ENDED for request in live)
    assert all(times <= 1 for times in ends.values()), "somebody ended twice"
    assert engine.counts.ended == engine.counts.requests == count
    finished = [r for r in live if ends.get(r)]
    assert all(r.generated == r.params.max_tokens for r in finished)
    assert engine.check_integrity()
    engine.forget()
    assert engine.cache.store.check_integrity()
    return engine


@pytest.mark.parametrize("windows", ["periodic", "none"])
def test_a_short_soak(windows: Windows) -> None:
    engine = soak(60, windows, speculate=windows == "periodic", seed=1)
    assert engine.cache.prefixes.counts.hits > 5 or windows == "none"  # prompts shorter than the warm-up


@pytest.mark.slow
@pytest.mark.parametrize("speculate", [False, True])
@pytest.mark.parametrize("windows", ["periodic", "full", "none"])
def test_2000_requests(windows: Windows, speculate: bool) -> None:
    engine = soak(2000, windows, speculate, seed=2)
    assert engine.counts.preempted > 0
    assert engine.cache.prefixes.counts.evicted > 0
