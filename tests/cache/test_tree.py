"""The radix tree behaves like a dictionary of token sequences."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from dsv4.cache.tree import RadixTree, token_key

sequences = st.lists(st.integers(0, 2), min_size=1, max_size=7).map(tuple)
steps = st.lists(st.tuples(st.sampled_from(["set", "remove", "query"]), sequences), max_size=60)


@given(steps)
def test_behaves_like_a_dictionary(work: list[tuple[str, tuple[int, ...]]]) -> None:
    tree: RadixTree[int] = RadixTree()
    known: dict[tuple[int, ...], int] = {}
    for number, (what, tokens) in enumerate(work):
        if what == "set":
            tree.set(token_key(tokens), number)
            known[tokens] = number
        elif what == "remove" and tokens in known:
            tree.remove(token_key(tokens))
            del known[tokens]
        elif what == "remove":
            with pytest.raises(KeyError):
                tree.remove(token_key(tokens))
        assert tree.get(token_key(tokens)) == known.get(tokens)
        prefixes = [known[tokens[:n]] for n in range(1, len(tokens) + 1) if tokens[:n] in known]
        assert list(tree.prefixes(token_key(tokens))) == prefixes
    for tokens in list(known):
        tree.remove(token_key(tokens))
    assert not tree._root.children, "removed branches are cut off"


def test_a_token_is_not_cut_in_two() -> None:
    """1 and 257 share a byte, not a token."""
    tree: RadixTree[str] = RadixTree()
    tree.set(token_key([1, 2]), "a")
    tree.set(token_key([257, 2]), "b")
    tree.set(token_key([1, 258]), "c")
    assert [tree.get(token_key(t)) for t in ([1, 2], [257, 2], [1, 258], [1])] == ["a", "b", "c", None]


def test_the_empty_sequence_holds_nothing() -> None:
    with pytest.raises(ValueError):
        RadixTree().set(b"", 1)
