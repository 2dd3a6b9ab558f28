"""BFCL: the published rules of right calls, each with a call that keeps it and one that breaks it."""

import json
from typing import Any

import pytest

from dsv4.evals.call_match import call_differs, calls_differ
from dsv4.evals.data import load
from dsv4.evals.suite import Answer, Ask, Generate, Graded, Mode
from dsv4.evals.suites.bfcl import CATEGORIES, SUITE, category
from dsv4.verify.answer import Call
from dsv4.verify.bfcl_file import openai_tool

ASK = Ask(Mode.NON_THINK, 1, 0)
PLAY = {
    "name": "music.play",
    "description": "Play.",
    "parameters": {
        "type": "dict",
        "properties": {
            "artist": {"type": "string"},
            "minutes": {"type": "integer"},
            "volume": {"type": "float", "description": "How loud."},
            "loud": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "where": {"type": "dict", "properties": {"room": {"type": "string"}, "floor": {"type": "integer"}}},
        },
        "required": ["artist"],
    },
}
RIGHT = {
    "artist": ["Maroon 5", "Maroon Five"],
    "minutes": [15, ""],
    "volume": [2.0, ""],
    "loud": [True, ""],
    "tags": [["Rock", "pop"], ""],
    "where": [{"room": ["kitchen"], "floor": [2, ""]}, ""],
}


@pytest.mark.parametrize(
    "arguments",
    [
        {"artist": "maroon-5"},
        {"artist": "MAROON FIVE", "minutes": 15},
        {"artist": "Maroon 5", "volume": 2},
        {"artist": "Maroon 5", "volume": 2.0, "loud": True},
        {"artist": "Maroon 5", "tags": ["rock", "POP"]},
        {"artist": "Maroon 5", "where": {"room": "Kitchen"}},
        {"artist": "Maroon 5", "where": {"floor": 2, "room": "kitchen"}},
    ],
)
def test_right_calls(arguments: dict[str, Any]) -> None:
    assert call_differs(PLAY, ("music_play", arguments), RIGHT) == ""


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"minutes": 15}, "artist is missing"),
        ({"artist": "Maroon 6"}, "artist: 'Maroon 6' is none of"),
        ({"artist": "Maroon 5", "album": "x"}, "album is not expected"),
        ({"artist": "Maroon 5", "minutes": 15.0}, "minutes: 15.0 is number, not integer"),
        ({"artist": "Maroon 5", "minutes": "15"}, "minutes: '15' is string, not integer"),
        ({"artist": "Maroon 5", "minutes": True}, "minutes: True is boolean"),
        ({"artist": "Maroon 5", "loud": 1}, "loud: 1 is integer, not boolean"),
        ({"artist": "Maroon 5", "volume": "2"}, "volume: '2' is string"),
        ({"artist": "Maroon 5", "tags": ["pop", "rock"]}, "tags: "),
        ({"artist": "Maroon 5", "tags": ["rock"]}, "tags: "),
        ({"artist": "Maroon 5", "where": {"floor": 2}}, "where: "),
        ({"artist": "Maroon 5", "where": {"room": "kitchen", "door": 1}}, "where: "),
        (None, "no JSON object"),
        (["Maroon 5"], "no JSON object"),
    ],
)
def test_wrong_calls(arguments: Any, why: str) -> None:
    assert why in call_differs(PLAY, ("music_play", arguments), RIGHT)


def test_an_argument_that_must_be_there_though_it_is_not_required() -> None:
    assert (
        call_differs(PLAY, ("music_play", {"artist": "a"}), {"artist": ["a"], "minutes": [3]}) == "minutes is missing"
    )
    assert call_differs(PLAY, ("other", {"artist": "a"}), {"artist": ["a"]}) == "other is called, not music_play"


def test_a_variable_in_place_of_a_value() -> None:
    right = {"artist": ["a"], "minutes": ["length_of_song"]}
    assert call_differs(PLAY, ("music_play", {"artist": "a", "minutes": "length_of_song"}), right) == ""
    assert call_differs(PLAY, ("music_play", {"artist": "a", "minutes": "Length of song"}), right) != ""
    assert call_differs(PLAY, ("music_play", {"artist": "a", "minutes": 3}), right) != ""


def test_no_value_may_be_a_right_value() -> None:
    right = {"artist": ["a"], "minutes": ["", None]}
    assert call_differs(PLAY, ("music_play", {"artist": "a", "minutes": None}), right) == ""
    assert "null" in call_differs(PLAY, ("music_play", {"artist": None}), {"artist": ["a"]})


def test_calls_in_any_order() -> None:
    right = [{"music.play": {"artist": [name]}} for name in ("a", "b")]
    calls = [("music_play", {"artist": name}) for name in ("b", "a")]
    assert calls_differ([PLAY], calls, right) == ""
    assert calls_differ([PLAY], calls[:1], right) == "1 calls, 2 expected"
    assert "no call for music.play" in calls_differ([PLAY], [calls[0], calls[0], calls[0]], [*right, right[0]])
    with pytest.raises(ValueError, match="no function 'x'"):
        calls_differ([PLAY], [("x", {})], [{"x": {}}])


def test_tools_are_sent_as_openai_takes_them() -> None:
    tool = openai_tool(PLAY)["function"]
    assert tool["name"] == "music_play"
    assert tool["parameters"]["type"] == "object"
    properties = tool["parameters"]["properties"]
    assert properties["volume"] == {
        "type": "number", "format": "float", "description": "How loud. This is a float type value.",
    }  # fmt: skip
    assert properties["where"]["properties"]["floor"] == {"type": "integer"}
    assert PLAY["parameters"]["type"] == "dict", "the document itself is not changed"


def test_questions_are_joined_with_their_answers() -> None:
    question = {"id": "parallel_3", "question": [[{"role": "user", "content": "?"}]], "function": [PLAY]}
    answer = {"id": "parallel_3", "ground_truth": [{"music.play": {"artist": ["a"]}}]}
    other = {"id": "multi_turn_base_1", "question": [], "function": []}
    free = {**question, "id": "live_irrelevance_7-0-1"}
    assert SUITE.join is not None
    joined = SUITE.join([question, free, other, answer])
    assert [(row["id"], len(row["ground_truth"])) for row in joined] == [
        ("parallel_3", 1),
        ("live_irrelevance_7-0-1", 0),
    ]
    item = SUITE.item(joined[0], ASK)
    assert item.group == "parallel"
    assert SUITE.score(item, Answer(calls=(Call("1", "music_play", '{"artist": "A"}'),))).value == 1
    assert SUITE.score(item, Answer(calls=(Call("1", "music_play", '{"artist": '),))).value == 0
    with pytest.raises(ValueError, match="parallel_3 has no right answer"):
        SUITE.join([question])


def test_questions_without_a_right_tool() -> None:
    row = {"question": [[{"role": "user", "content": "?"}]], "function": [PLAY], "ground_truth": []}
    call = Answer(calls=(Call("1", "music_play", "{}"),))
    for kind, with_call in (("irrelevance", 0), ("live_irrelevance", 0), ("live_relevance", 1)):
        item = SUITE.item({**row, "id": f"{kind}_1"}, ASK)
        assert SUITE.score(item, call).value == with_call
        assert SUITE.score(item, Answer("no")).value == 1 - with_call


def test_the_stand_in_can_be_answered() -> None:
    rows = load(SUITE, "stand-in", Generate(1)).rows
    assert {category(row["id"]) for row in rows} <= {*CATEGORIES}
    for row in rows:
        item = SUITE.item(row, ASK)
        calls = [
            Call(str(place), name, json.dumps(_arguments(right)))
            for place, each in enumerate(item.target)
            for name, right in each.items()
        ]
        assert SUITE.score(item, Answer(calls=tuple(calls))).value == 1, row["id"]


def _arguments(right: dict[str, list[Any]]) -> dict[str, Any]:
    """The first of the right values of each argument."""
    return {name: _arguments(each) if isinstance(each := values[0], dict) else each for name, values in right.items()}


def test_the_means_of_the_leaderboard() -> None:
    assert SUITE.summary is not None
    graded = [
        Graded("a", 0, 1, "parallel"), Graded("b", 0, 0, "parallel"), Graded("c", 0, 1, "multiple"),
        Graded("d", 0, 1, "live_simple"), Graded("e", 0, 0, "live_multiple"), Graded("f", 0, 0, "live_multiple"),
    ]  # fmt: skip
    assert SUITE.summary(graded) == {"mean of categories": 0.75, "live, mean of questions": pytest.approx(1 / 3)}
