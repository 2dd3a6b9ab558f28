"""Text of a wanted length."""

import random

import pytest

from dsv4.evals.long_prompts import CLOSE, fit, insert, label, sentences


def words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize("tokens", [10, 11, 100, 4096, 131_072])
def test_a_text_fills_the_length_and_few_are_counted(tokens: int) -> None:
    counted = []

    def count(text: str) -> int:
        counted.append(words(text))
        return counted[-1]

    text = fit(
        lambda n: "ten words are here before any of the text follows " + " ".join(sentences(n, 3)), str, tokens, count
    )
    longest = max(words(each) for each in sentences(200, 3))
    assert tokens - max(CLOSE * tokens, longest) <= words(text) <= tokens
    assert len(counted) <= 12


def test_a_length_that_holds_no_question_is_refused() -> None:
    with pytest.raises(ValueError, match="lengths: 3 tokens are too few"):
        fit(lambda n: "a question of five words" + " more" * n, str, 3, words)


def test_a_text_that_grows_ever_faster_is_found_too() -> None:
    assert words(fit(lambda n: "x " * n**2, str, 10_000, words)) == 10_000


def test_needles_keep_their_order_and_all_parts_stay() -> None:
    parts, needles = [str(n) for n in range(50)], ["a", "b", "c"]
    mixed = insert(parts, needles, random.Random(1))
    assert [each for each in mixed if each in parts] == parts
    assert [each for each in mixed if each in needles] == needles
    assert insert([], needles, random.Random(1)) == needles


def test_labels() -> None:
    assert [label(n) for n in (4096, 131_072, 2**20, 5000)] == ["4K", "128K", "1M", "5000"]
