"""Rewards by rule: what counts as right, what does not, and texts made to break a grader."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv4.posttraining.verifiers import LONGEST, VERIFIERS, check_expected, reward

COUNTDOWN = {"numbers": [3, 5, 9, 2], "target": 70}
EXPECTED = {
    "number": 415, "text": "Yes.", "order": [1, 2, 3], "expression": COUNTDOWN, "contains": ["red", "kite"],
    "choice": {"right": "search", "options": ["search", "answer"]},
    "one_of": ["You are welcome!", "My pleasure!"],
}  # fmt: skip
GOOD = [
    ("number", "The answer is 415.", 415),
    ("number", "417 - 2 = 415", 415),
    ("number", "-266.", -266),
    ("number", "It is −266", -266),
    ("number", "3-10=-7", -7),
    ("number", "10-7", 7),
    ("number", "(3) - 7", 7),
    ("number", "1,234,567", 1234567),
    ("number", "2.50 Euro", 2.5),
    ("number", "0.1", 0.1),
    ("number", "-1234.07", "-1,234.07"),
    ("order", "0.1, 0.30", [0.1, 0.3]),
    ("text", "yes", "Yes."),
    ("text", "  Yes!\n", "yes"),
    ("order", "1, 2, 3", [1, 2, 3]),
    ("order", "5, -3, -1234", [5, -3, -1234]),
    ("order", "1,2,3.", [1, 2, 3]),
    ("order", "3 2 1 4 5.", [3, 2, 1, 4, 5]),
    ("order", "100,200", [100, 200]),
    ("expression", "(3+5)*9-2=70", COUNTDOWN),
    ("expression", "I tried.\nAnswer: (3 + 5) × 9 − 2 = 70.", COUNTDOWN),
    ("expression", "((3+5)*9)-2", COUNTDOWN),
    ("contains", "Anna has a RED kite.", ["red", "kite"]),
    ("contains", "She lives in New York.", "new york"),
    ("choice", "New York!", {"right": "New York", "options": ["York", "New York"]}),
    ("choice", "I would search.", {"right": "search", "options": ["search", "answer"]}),
    ("one_of", "my pleasure", ["You are welcome!", "My pleasure!"]),
]
BAD = [
    ("number", "", 415),
    ("number", "415 or 416", 415),
    ("number", "415th", 415),
    ("number", "x415", 415),
    ("number", "4e15 415e0", 415),
    ("number", "1e9999", 9999),
    ("number", "4,15", 415),
    ("number", "415/1", 415),
    ("number", "٤١٥", 415),
    ("number", "-415", 415),
    ("number", "4 1 5", 415),
    ("text", "Yes and no.", "Yes."),
    ("text", "", "Yes."),
    ("order", "1, 2, 3, 3", [1, 2, 3]),
    ("order", "1, 3, 2", [1, 2, 3]),
    ("order", "123", [1, 2, 3]),
    ("order", "", [1, 2, 3]),
    ("expression", "70", COUNTDOWN),
    ("expression", "(3+5)*9-2=71", COUNTDOWN),
    ("expression", "(3+5)*9-1-1", COUNTDOWN),
    ("expression", "(3+5)*9", COUNTDOWN),
    ("expression", "(3+5)*9-2-0", COUNTDOWN),
    ("expression", "(3+5)*9-2=70=70", COUNTDOWN),
    ("expression", "(3+5)(9)-2", COUNTDOWN),
    ("expression", "(3+5)*9-2)", COUNTDOWN),
    ("expression", "((3+5)*9-2", COUNTDOWN),
    ("expression", "35*2", {"numbers": [3, 5, 2], "target": 70}),
    ("expression", "2**9", {"numbers": [2, 9], "target": 512}),
    ("expression", "9//2", {"numbers": [9, 2], "target": 4}),
    ("expression", "4/0", {"numbers": [4, 0], "target": 4}),
    ("expression", "-3+5", {"numbers": [3, 5], "target": 2}),
    ("expression", "__import__('os')", COUNTDOWN),
    ("contains", "a bored kite", ["red", "kite"]),
    ("contains", "a red kitten", ["red", "kite"]),
    ("choice", "search or answer", {"right": "search", "options": ["search", "answer"]}),
    ("one_of", "You are welcome! My pleasure!", ["You are welcome!", "My pleasure!"]),
    ("choice", "New York!", {"right": "York", "options": ["York", "New York"]}),
    ("choice", "answer", {"right": "search", "options": ["search", "answer"]}),
]
HOSTILE = [
    "9" * 100_000, "(" * 100_000, "(" * 31 + "3" + ")" * 31, "((((" * 900, "9*" * 2000 + "9", "9" * 40 + "*" + "9" * 40,
    "\0", "3\0+5", "1e9999", "-" * 4000 + "1", "1," * 2000, "1." * 2000, "0x415", "٣+٥", "²", "41\u200b5", "\ud800",
    "1/0", "5 % 0", "NaN", "Infinity", "\n" * 4000, ":" * 4000, "=" * 4000, " " * 4000 + "1", "-1" * 2000, "½",
    "9" * (LONGEST - 1),
]  # fmt: skip
CONTRADICTIONS = [
    ("choice", {"right": "look up", "options": ["search", "answer"]},
     r"right must be one of options \['search', 'answer'\], got 'look up'"),
    ("choice", {"right": "a", "options": []}, r"right must be one of options \[\], got 'a'"),
    ("choice", {"right": "s", "options": "search"}, "a list is expected, got 'search'"),
    ("choice", {"right": "yes", "options": ["Yes", "yes"]}, "no answer could be right"),  # the same words
    ("choice", {"right": "+", "options": ["+", "-"]}, "an empty answer would be right"),  # no words
    ("contains", [], "one or more texts are expected"),
    ("contains", ["red", "!"], "no answer could be right"),
    ("contains", "", "an empty answer would be right"),
    ("contains", {"red": 1}, "a list is expected"),
    ("one_of", [], "one or more texts are expected"),
    ("one_of", "yes", "a list is expected, got 'yes'"),
    ("one_of", ["yes", "..."], "an empty answer would be right"),
    ("one_of", ["yes", "x" * (LONGEST + 1)], "no answer could be right"),
    ("text", " ?", "an empty answer would be right"),
    ("text", 5, "TypeError"),
    ("number", float("nan"), "Invalid literal"),
    ("number", True, "Invalid literal"),
    ("number", "1/3", "a number is expected, got '1/3'"),
    ("number", "1e9", "a number is expected, got '1e9'"),
    ("number", 10**41, "no answer could be right"),
    ("number", 1e-60, "no answer could be right"),
    ("order", [], "an empty answer would be right"),
    ("order", "123", "a list is expected, got '123'"),
    ("order", [1, None], "Invalid literal"),
    ("expression", {"numbers": [], "target": 3}, r"numbers must be one or more whole numbers of at least 0, got \[\]"),
    ("expression", {"numbers": [-3, 2], "target": 3}, "numbers must be one or more whole numbers of at least 0"),
    ("expression", {"numbers": [2.5, 2], "target": 5}, "numbers must be whole .*, got 2.5"),
    ("expression", {"numbers": [2, 3], "target": 6.5}, "target must be whole .*, got 6.5"),
    ("expression", {"numbers": [2], "target": 10**40}, "target must be whole and have at most 40 digits"),
]  # fmt: skip


@pytest.mark.parametrize(("verifier", "answer", "expected"), GOOD)
def test_a_right_answer_is_worth_one(verifier: str, answer: str, expected: object) -> None:
    assert reward(verifier, answer, expected) == 1.0


@pytest.mark.parametrize(("verifier", "answer", "expected"), BAD)
def test_a_wrong_answer_is_worth_nothing(verifier: str, answer: str, expected: object) -> None:
    assert reward(verifier, answer, expected) == 0.0


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_hostile_answer_is_worth_nothing_at_once(verifier: str, number: int) -> None:
    start = time.process_time()
    assert reward(verifier, HOSTILE[number], EXPECTED[verifier]) == 0.0
    assert time.process_time() - start < 5  # a trap, not a measurement: quadratic work would take minutes


@pytest.mark.parametrize("verifier", VERIFIERS)
@given(answer=st.text() | st.text(alphabet="0123456789+-*/()=.,: \n\0e", max_size=200))
def test_no_text_makes_a_verifier_raise(verifier: str, answer: str) -> None:
    assert reward(verifier, answer, EXPECTED[verifier]) in (0.0, 1.0)


@given(
    numbers=st.lists(st.integers(0, 99), min_size=2, max_size=6),
    signs=st.lists(st.sampled_from("+-*"), min_size=5, max_size=5),
    bracket=st.booleans(),
)
def test_an_expression_has_the_value_that_python_gives(numbers: list[int], signs: list[str], bracket: bool) -> None:
    source = str(numbers[0])
    for sign, value in zip(signs, numbers[1:], strict=False):
        source = f"({source}){sign}{value}" if bracket else f"{source} {sign} {value}"
    target = eval(source)
    assert reward("expression", source, {"numbers": numbers[::-1], "target": target}) == 1.0
    assert reward("expression", source, {"numbers": numbers, "target": target + 1}) == 0.0
    assert reward("expression", source, {"numbers": [*numbers, 1], "target": target}) == 0.0


@given(value=st.integers(-(10**9), 10**9), lead=st.sampled_from(["", "The answer is ", "12 + 5 = ", "so: "]))
def test_a_number_is_found_after_any_lead(value: int, lead: str) -> None:
    assert reward("number", f"{lead}{value}.", value) == 1.0
    assert reward("number", f"{lead}{value}.", value + 1) == 0.0


@pytest.mark.parametrize(("verifier", "expected", "message"), CONTRADICTIONS)
def test_a_task_that_no_answer_or_an_empty_one_solves_is_a_mistake(
    verifier: str, expected: object, message: str
) -> None:
    with pytest.raises(ValueError, match=f"the verifier {verifier} cannot compare with .*{message}"):
        check_expected(verifier, expected)


@pytest.mark.parametrize(("verifier", "expected"), [(verifier, expected) for verifier, _, expected in GOOD])
def test_a_task_with_a_right_answer_is_taken(verifier: str, expected: object) -> None:
    check_expected(verifier, expected)


@given(value=st.floats(-1e9, 1e9, allow_subnormal=False).filter(lambda value: value == 0 or abs(value) > 1e-9))
def test_a_fraction_is_what_is_written(value: float) -> None:
    check_expected("number", value)
    assert reward("number", str(value), value) == float("e" not in str(value))


def test_a_contradiction_raises_in_the_verifier_too() -> None:
    with pytest.raises(ValueError, match=r"right must be one of options \['a', 'b'\], got 'c'"):
        reward("choice", "x" * (LONGEST + 1), {"right": "c", "options": ["a", "b"]})


def test_an_unknown_verifier_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="verifier: 'judge' is unknown"):
        reward("judge", "1", 1)
