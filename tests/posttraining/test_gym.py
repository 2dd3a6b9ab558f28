"""Generators of reasoning-gym as prompts; skipped where the package is not installed."""

import pytest

from dsv4.encoding import Tokenizer
from dsv4.posttraining.chat import ChatEnvironment
from dsv4.posttraining.gym import GYM, gym_prompts, gym_reward
from dsv4.posttraining.rollout import RolloutRunner, RolloutSettings
from dsv4.testing.stub import StubGenerator
from tests.posttraining.policies import run

reasoning_gym = pytest.importorskip("reasoning_gym")


@pytest.mark.parametrize(
    "name", ["chain_sum", "number_sorting", "syllogism", "countdown", "letter_counting", "coin_flip"]
)
def test_answers_of_the_generator_are_right_and_others_are_not(tokenizer: Tokenizer, name: str) -> None:
    items = reasoning_gym.create_dataset(name, seed=3, size=4)
    prompts = gym_prompts(tokenizer, name, 4, seed=3)
    assert len({prompt.key for prompt in prompts}) == 4
    for prompt, item in zip(prompts, items, strict=True):
        assert item["question"] in tokenizer.decode(prompt.tokens)
        assert gym_reward(str(item["answer"]), prompt.task["answer"]) == 1.0
        assert gym_reward("no idea", prompt.task["answer"]) < 0.5


def test_rollouts_are_judged(tokenizer: Tokenizer) -> None:
    prompts = gym_prompts(tokenizer, "chain_sum", 2, min_terms=2, max_terms=2, min_digits=1, max_digits=1)
    item = reasoning_gym.create_dataset(
        "chain_sum", seed=0, size=2, min_terms=2, max_terms=2, min_digits=1, max_digits=1
    )[0]
    said = [tokenizer.token_id("</think>"), *tokenizer.encode_text(item["answer"]), tokenizer.eos_id]
    environment = ChatEnvironment(tokenizer, GYM)
    runner = RolloutRunner(
        StubGenerator(said), {"gym": environment}, RolloutSettings(group=2, max_tokens=50), end=tokenizer.eos_id
    )
    groups = run(runner.batch(prompts, 0))
    assert groups[0].rewards == [1.0, 1.0]
    assert max(groups[1].rewards) < 1.0


def test_unknown_generators_and_settings_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="reasoning-gym has no generator 'sums'"):
        gym_prompts(tokenizer, "sums", 1)
    with pytest.raises(ValueError, match="reasoning-gym has no generator 'chain_sum' with the settings"):
        gym_prompts(tokenizer, "chain_sum", 1, terms=3)
