"""A budget for experts, as a user meets it."""

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
        counts = expert_counts()
        assert 0 < counts.missed < counts.taken
        assert counts.resident < 16
    dsv4.load(mode="release")  # without a budget the limit ends
    assert expert_counts().taken == 0


def test_a_budget_that_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="expert_memory needs mode 'release'"):
        dsv4.load(mode="fp32", expert_memory=2**30)
    with pytest.raises(ValueError, match=r"expert_memory must be at least [\d,]+ bytes .*, got 1,000"):
        dsv4.load(mode="release", expert_memory=1000)
