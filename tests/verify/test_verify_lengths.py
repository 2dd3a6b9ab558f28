"""Which prompt lengths `dsv4 verify` compares."""

import pytest

from dsv4.verify.lengths import _Compared, begins


@pytest.mark.parametrize("beyond", [0, 7])
@pytest.mark.parametrize("sampled", [1, 2, 4])
def test_lengths_that_short_answers_left_out_are_compared_afterwards(sampled: int, beyond: int) -> None:
    compared = _Compared(beyond=beyond)
    for begin in begins(600, compared, 200):
        compared.lengths |= {begin + beyond + known for known in range(1, sampled + 1)}
    assert {length % 128 for length in compared.lengths} == set(range(128))


def test_further_lengths_are_few() -> None:
    assert len(list(begins(600, _Compared(), 0))) == 39
    assert len(list(begins(600, _Compared(), 48))) == 39 + 48
    assert max(begins(300, _Compared(), 48)) <= 300
