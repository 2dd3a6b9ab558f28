"""A budget for experts, as a user meets it."""

import gc

import pytest

import dsv4
from dsv4.kernels import native
from dsv4.kernels.moe.residency import expert_counts

QUESTION = [{"role": "user", "content": "What is 17 + 25?"}]


@pytest.mark.skipif(not native.available(), reason=f"native kernels: {native.why_not()}")
def test_the_answer_is_the_same_within_a_budget() -> None:
    free = dsv4.load(mode="release").chat(QUESTION, temperature=0)
    for fused in (True, False):
        model = dsv4.load(mode="release", expert_memory=2**20, fused=fused)
        bound = model.chat(QUESTION, temperature=0)
        assert bound.completion.tokens == free.completion.tokens
        assert model.expert_budget is not None
        counts = model.expert_budget.counts()
        assert 0 < counts.missed < counts.taken
        assert (counts.foreseen > 0) is fused  # only the fused step reads ahead
        assert counts.resident < 16


@pytest.mark.skipif(not native.available(), reason=f"native kernels: {native.why_not()}")
def test_a_budget_lives_as_long_as_its_model() -> None:
    gc.collect()
    bound = dsv4.load(mode="release", expert_memory=2**20)
    free = dsv4.load(mode="release")  # a second model without a limit changes nothing for the first
    answers = {model.chat(QUESTION, temperature=0).content for model in (free, bound)}
    assert len(answers) == 1
    assert bound.expert_budget is not None
    assert free.expert_budget is None
    assert expert_counts().taken == bound.expert_budget.counts().taken > 0
    engine = bound.engine  # all that is left of it
    del bound
    gc.collect()
    assert expert_counts().taken
    del engine
    gc.collect()
    assert expert_counts().taken == 0


def test_a_budget_that_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="expert_memory needs mode 'release'"):
        dsv4.load(mode="fp32", expert_memory=2**30)
    with pytest.raises(ValueError, match=r"expert_memory must be at least [\d,]+ bytes .*, got 1,000"):
        dsv4.load(mode="release", expert_memory=1000)
