"""The fixture `service`: an engine with a small model, for tests of what stands in front of an engine."""

from collections.abc import Iterator

import pytest

from dsv4.encoding import Tokenizer
from dsv4.engine import Engine, EngineService
from dsv4.testing.tiny import tiny_config, tiny_model

__all__ = ["service"]


@pytest.fixture(scope="module")
def service(tokenizer: Tokenizer) -> Iterator[EngineService]:
    """An engine with a small model of the tokenizer's vocabulary."""
    model = tiny_model(tiny_config(vocab_size=tokenizer.vocab_size))
    service = EngineService(Engine(model, context_length=400, step_tokens=64, sequences=6))
    yield service
    service.close()
