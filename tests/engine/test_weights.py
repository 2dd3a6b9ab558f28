"""New weights in a running engine: the fused step computes with them, mistakes change nothing."""

import asyncio

import pytest
import torch

from dsv4.engine import Engine
from dsv4.engine.service import EngineService
from dsv4.engine.weights import EngineWeights
from dsv4.generation import SamplingParams
from dsv4.model.layers import BF16
from dsv4.testing.tiny import tiny_model

PROMPT = list(range(2, 60))


def logprobs(service: EngineService) -> list[float]:
    async def ask() -> list[float]:
        params = SamplingParams(max_tokens=12, temperature=0, logprobs=True)
        return [e.logprobs.chosen async for e in service.stream(PROMPT, params) if e.logprobs is not None]

    return asyncio.run(ask())


@pytest.mark.parametrize("numerics", ["fp32", "bf16"])
def test_published_weights_are_the_ones_that_choose(numerics: str) -> None:
    wide = {} if numerics == "fp32" else {"numerics": BF16}
    service = EngineService(Engine(tiny_model(**wide), context_length=128, sequences=2))
    loaded, weights = tiny_model(seed=1, **wide), tiny_model(seed=7).state_dict()
    loaded.load_state_dict(weights)
    other = EngineService(Engine(loaded, context_length=128, sequences=2))
    sink = EngineWeights(service)
    try:
        before, wanted = logprobs(service), logprobs(other)
        assert sink.version == 0
        asyncio.run(sink.publish(weights, 5))
        assert sink.version == 5
        assert logprobs(service) == wanted != before
    finally:
        service.close()
        other.close()


def test_weights_that_do_not_fit_change_nothing() -> None:
    service = EngineService(Engine(tiny_model(), context_length=128, sequences=2))
    sink, state = EngineWeights(service), tiny_model(seed=7).state_dict()
    try:
        before = logprobs(service)
        with pytest.raises(ValueError, match="the model has no 'nothing'"):
            asyncio.run(sink.publish({**state, "nothing": torch.zeros(1)}, 1))
        with pytest.raises(ValueError, match=r"norm.weight must have shape \[64\], got \[3\]"):
            asyncio.run(sink.publish({**state, "norm.weight": torch.zeros(3)}, 1))
        assert sink.version == 0
        assert logprobs(service) == before
    finally:
        service.close()
