"""Packed sequences: the layout of a step, and what is refused."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from dsv4.config import tail_length
from dsv4.model.inputs import FreshCache, Sequences


@pytest.mark.parametrize(
    ("lengths", "cached", "message"),
    [
        ([], None, "lengths and cached must be equally long and not empty"),
        ([3], [1, 2], "lengths and cached must be equally long"),
        ([3, 0], None, "sequence 1 needs at least 1 new token and cached >= 0, got 0 and 0"),
        ([-1], None, "sequence 0 needs at least 1 new token"),
        ([3], [-2], "got 3 and -2"),
    ],
)
def test_impossible_batches_are_refused(lengths: list[int], cached: list[int] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sequences.pack(lengths, (4, 128), cached)


def test_a_fresh_cache_refuses_cached_tokens() -> None:
    with pytest.raises(ValueError, match="without cached tokens"):
        FreshCache(Sequences.pack([2, 2], (4,), [0, 1]), 128)


def test_positions_continue_after_the_cached_tokens() -> None:
    sequences = Sequences.pack([3, 1, 2], (4,), [0, 9, 4])
    assert sequences.borders == (0, 3, 4, 6)
    assert sequences.tokens == 6
    assert sequences.positions_T.tolist() == [0, 1, 2, 9, 4, 5]
    assert sequences.sequence_T.tolist() == [0, 0, 0, 1, 2, 2]


spans = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 60)), min_size=1, max_size=5)


@given(spans, st.sampled_from([4, 16, 32]))
@settings(deadline=None)
def test_blocks_are_the_tokens_they_say(spans: list[tuple[int, int]], ratio: int) -> None:
    """Give every joined row its (sequence, position) and read the blocks back."""
    lengths, cached = [n for n, _ in spans], [old for _, old in spans]
    sequences = Sequences.pack(lengths, (ratio,), cached)
    blocks = sequences.blocks[ratio]
    joined = [(b, p) for b, (new, old) in enumerate(spans) for p in range(old - tail_length(ratio, old), old + new)]
    assert blocks.joined[-1] == len(joined)
    expected = [
        (b, first)
        for b, (new, old) in enumerate(spans)
        for first in range(0, old + new, ratio)
        if old < first + ratio <= old + new
    ]
    assert len(blocks.own_Nm) == len(expected)
    for n, (b, first) in enumerate(expected):
        assert [joined[row] for row in blocks.own_Nm[n]] == [(b, first + i) for i in range(ratio)]
        assert int(blocks.position_N[n]) == first
        if blocks.previous_Nm is not None:
            before = blocks.previous_Nm[n].tolist()
            if first == 0:
                assert before == [-1] * ratio
            else:
                assert [joined[row] for row in before] == [(b, first - ratio + i) for i in range(ratio)]
    assert (blocks.previous_Nm is not None) is (ratio == 4)
    assert blocks.visible_T.tolist() == [(old + i + 1) // ratio for new, old in spans for i in range(new)]
    assert blocks.longest == max((new + old) // ratio for new, old in spans)
    assert list(blocks.first_entry) == [old // ratio for old in cached]
    assert list(blocks.tails) == [tail_length(ratio, new + old) for new, old in spans]


@pytest.mark.parametrize(
    ("ratio", "tokens", "kept"), [(4, 3, 3), (4, 4, 4), (4, 7, 7), (4, 8, 4), (16, 16, 0), (16, 31, 15)]
)
def test_a_tail_is_what_an_unfinished_block_still_needs(ratio: int, tokens: int, kept: int) -> None:
    assert tail_length(ratio, tokens) == kept


def test_windows_of_fresh_sequences_stay_within_them() -> None:
    cache = FreshCache(Sequences.pack([5, 3], ()), 3)
    buffer = cache.layer(7).append(torch.zeros(8, 2), None, None)
    assert buffer.window_T2.tolist() == [[0, 1], [0, 2], [0, 3], [1, 4], [2, 5], [5, 6], [5, 7], [5, 8]]
    assert buffer.entries is None
