"""The engine on a simulated card: chunked prefill, decoding, speculation, traces, reused prefixes and the disk."""

from pathlib import Path

import pytest
import torch

from dsv4.cache.disk import DiskTier
from dsv4.engine import Engine, EngineService
from dsv4.engine.weights import EngineWeights
from dsv4.generation import SamplingParams
from dsv4.model.layers import MODES
from dsv4.model.transformer import Transformer
from dsv4.testing.card import simulated_card
from dsv4.testing.tiny import tiny_config, tiny_draft_config, tiny_model
from tests.posttraining.policies import run

CONFIG = tiny_config(num_hidden_layers=3, compress_ratios=(0, 4, 128, 0), n_routed_experts=4)
LONG = torch.randint(5, 97, (140,), generator=torch.Generator().manual_seed(3)).tolist()
PROMPTS = [LONG[:5], LONG, [*LONG[:133], 7, 8, 9]]


def model(mode: str) -> Transformer:
    return tiny_model(CONFIG, numerics=MODES[mode], impl="torch").requires_grad_(False)


def answers(asked: Transformer, disk: DiskTier | None = None) -> list[list[int]]:
    """Three requests in turn: greedy and traced, sampled, and one that shares a prefix with the second."""
    engine = Engine(asked, context_length=256, sequences=2, step_tokens=96, fused=False, disk=disk, speculate=True)
    found = []
    for i, prompt in enumerate(PROMPTS):
        params = SamplingParams(
            max_tokens=3,
            temperature=0.5 * i,
            seed=i,
            top_p=0.9,
            logprobs=True,
            top_logprobs=2,
            frequency_penalty=0.2,
            logit_bias=((3, 1.0),),
            trace=i == 0,
        )
        found.append([event.token for event in engine.generate(prompt, params) if event.token is not None])
    engine.close()
    assert engine.check_integrity()
    return found


@pytest.mark.parametrize("mode", ["fp32", "release"])
def test_answers_on_a_card_are_those_of_the_host(mode: str, tmp_path: Path) -> None:
    wanted = answers(model(mode))
    with simulated_card() as card:
        moved = model(mode).to(card)
        for _ in range(2):  # the second engine finds the first one's prefixes on the disk
            disk = DiskTier(tmp_path, budget=2**28, fingerprint="one")
            assert answers(moved, disk) == wanted
        assert disk.counts.read_bytes > 0


def test_blocks_of_drafts_on_a_card() -> None:
    """The draft head (DSpark) proposes, and the text is that of the host. How many drafts a step checks follows from
    measured seconds, so that their number may differ."""

    def drafted(asked: Transformer) -> list[int | None]:
        engine = Engine(asked.requires_grad_(False), context_length=64, sequences=1, fused=False, speculate=True)
        events = list(engine.generate(LONG[:5], SamplingParams(max_tokens=5, temperature=1, seed=1)))
        assert engine.counts.drafted > 0
        return [event.token for event in events]

    wanted = drafted(tiny_model(tiny_draft_config(), impl="torch"))
    with simulated_card() as card:
        assert drafted(tiny_model(tiny_draft_config(), impl="torch").to(card)) == wanted


def test_a_service_on_a_card_takes_weights_of_the_host() -> None:
    other = tiny_model(CONFIG, seed=7, impl="torch")
    params = SamplingParams(max_tokens=2, temperature=0)

    async def asked(service: EngineService) -> list[int]:
        return [event.token async for event in service.stream(LONG[:9], params) if event.token is not None]

    with simulated_card() as card:
        service = EngineService(Engine(model("fp32").to(card), context_length=32, sequences=2))
        try:
            before = run(asked(service))
            run(EngineWeights(service).publish(dict(other.state_dict()), 1))
            after = run(asked(service))
        finally:
            service.close()
    engine = Engine(other.requires_grad_(False), context_length=32, sequences=2)
    assert after == [event.token for event in engine.generate(LONG[:9], params) if event.token is not None] != before


def test_steps_on_a_card_cannot_be_fused() -> None:
    with simulated_card() as card:
        moved = model("fp32").to(card)
        with pytest.raises(ValueError, match="the model is on meta, native code runs on the CPU"):
            Engine(moved, context_length=32, fused=True)
        engine = Engine(moved, context_length=32)
        assert engine.runner.describe().startswith("op by op (the model is on meta")
