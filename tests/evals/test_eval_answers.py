"""What is extracted from answers, and what counts as equal."""

from fractions import Fraction

import pytest

from dsv4.evals import math_process
from dsv4.evals.answers import (
    choice_letter,
    choice_prompt,
    last_boxed,
    last_number,
    normalised,
    number,
    same_math,
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{42}.", "42"),
        (r"first \boxed{1}, then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{7} and an open one \boxed{8", "7"),
        (r"\fbox{ x }", "x"),
        ("no box", ""),
    ],
)
def test_the_last_closed_box(text: str, found: str) -> None:
    assert last_boxed(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Answer: B", "B"),
        ("Answer: A\nNo.\n**Answer: $C$**", "C"),
        ("The answer is (d).", "D"),
        (r"\boxed{\text{A}}", "A"),
        ("Answer: E", ""),
        ("A cat", ""),
        ("Answer: Because", ""),
    ],
)
def test_the_letter_of_a_choice(text: str, found: str) -> None:
    assert choice_letter(text, 4) == found


def test_a_prompt_with_choices_names_all_letters() -> None:
    prompt = choice_prompt("Which?", ["one", "two", "three"])
    assert "LETTER is one of ABC." in prompt
    assert prompt.endswith("Which?\n\nA) one\nB) two\nC) three")


def test_numbers() -> None:
    assert last_number("from 3 to 1,234.50 dollars.") == "1234.50"
    assert last_number("none") == ""
    assert number("1,000") == number("1000.0") == 1000
    assert number("0.5") == number("1/2") == Fraction(1, 2)
    assert number("1/0") is None
    assert number("5") != number("6")
    assert number("x") is None


def test_short_answers_are_compared_without_articles_and_accents() -> None:
    assert normalised("The Café, ") == normalised("cafe")
    assert normalised("42 km") != normalised("43 km")


def test_texts_and_numbers_need_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_process, "equal", None)
    assert same_math("18", "18.0")
    assert same_math(r"2\sqrt{3}", r"2 \sqrt{3}")
    assert not same_math("18", "")
    assert not same_math("18", "-18")


def test_expressions_are_compared_by_value() -> None:
    pytest.importorskip("math_verify")
    assert same_math(r"2\sqrt{3}", r"\sqrt{12}")
    assert same_math(r"\{1,2\}", r"\{2,1\}")
    assert not same_math(r"2\sqrt{3}", r"\sqrt{13}")


def test_an_expression_that_takes_for_ever_is_not_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    same_math(r"2\sqrt{3}", r"\sqrt{12}")  # the library is loaded
    monkeypatch.setattr(math_process, "SECONDS", 0.0)
    assert not same_math("x+1", "1+x")
    monkeypatch.setattr(math_process, "SECONDS", 600.0)
    assert same_math("x+1", "1+x"), "the next comparison starts a new process"
