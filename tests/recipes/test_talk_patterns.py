"""Small talk: patterns expand as written, no wording has two answers, and answers repeat what is typed."""

import random
import re
from collections import defaultdict

import pytest

from recipes.nano.items import everyday_tools, problems, talk, tool_kinds, unseen_tools
from recipes.nano.items.patterns import fill, parse, slots
from recipes.nano.items.typed import typed


def test_alternatives_nest_and_a_phrase_is_one() -> None:
    made = parse("[a [b|c]|d|]<end>, {word2}", {"end": "x|<last>", "last": " y"})
    ways = [f"{left}{end}, {{word2}}" for left in ("a b", "a c", "d", "") for end in ("x", " y")]
    assert made.texts() == [way.strip() for way in ways]
    assert made.size == 8
    assert {made.draw(random.Random(seed)) for seed in range(200)} == set(made.texts())


def test_a_line_break_in_a_pattern_does_not_count() -> None:
    assert parse("say [a|\n    b] c").texts() == ["say a c", "say b c"]


@pytest.mark.parametrize("pattern", ["[a|b", "a|b", "a]", "[a]]"])
def test_brackets_that_do_not_match_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="bracket"):
        parse(pattern)


def test_words_of_a_list_may_have_words_themselves() -> None:
    words: dict[str, str] = {"name": "Ida"}
    lists = {"name": ["Ben"], "thing": ["{name}'s {colour} hat"], "colour": ["red", "blue"]}
    text = fill(random.Random(1), "{name}: {thing}, {colour} or {colour2}", lists, words)
    assert re.fullmatch("Ida: Ben's (red|blue) hat, (red|blue) or (red|blue)", text)
    assert words["colour2"] in ("red", "blue")


def test_no_wording_belongs_to_two_intents_with_different_answers() -> None:
    owners: dict[str, set[str]] = defaultdict(set)
    phrases = talk.phrases() | {"ask": ""}  # "please write" and "write" are the same here
    for name, intent in talk.intents().items():
        for pattern in (*intent.says, *intent.frequent):
            for text in parse(pattern, phrases).texts():
                owners[talk.plain(text)].add(name)
    both = {text: names for text, names in owners.items() if len({talk.intents()[one].answers for one in names}) > 1}
    assert not both
    assert len(owners) > 20_000


def test_every_word_in_braces_has_a_list() -> None:
    lists = talk.word_lists()
    texts = [text for intent in talk.intents().values() for text in (*intent.says, *intent.frequent, *intent.answers)]
    named = {name for text in (*texts, *(word for words in lists.values() for word in words)) for name in slots(text)}
    assert {name.rstrip("23") for name in named} - {"hint"} == set(lists)
    assert all(len(set(words)) >= 3 for words in lists.values())


def test_the_answer_repeats_the_words_as_they_are_typed() -> None:
    rng = random.Random(3)
    for name in ("repeat", "user_name"):
        assert talk.intents()[name].copied
        for _ in range(300):
            item = talk.talk_about(rng, name)
            asked, said = (message["content"] for message in item.messages)
            word = said if name == "repeat" else re.sub(r".*(?:Hello|you,) (.*)!.*|.*", r"\1", said) or said
            assert word.split("!")[0] in asked


def test_fillers_and_short_forms_do_not_hide_a_held_out_wording() -> None:
    row = next(w for w in talk.held_out_wordings() if len(talk.core(w).split()) > 3)
    assert talk.held_out(row)
    assert talk.held_out(f"Hello nano, {row} please?")
    assert talk.core("so what's up with you") == talk.core("What is up with you?")
    assert not talk.held_out("hello")


def test_people_type_one_wording_in_many_ways() -> None:
    rng = random.Random(4)
    made = {typed(rng, "what is your favourite colour") for _ in range(2000)}
    assert len(made) > 700
    assert {"What's your favourite colour?", "what is your favourite colour", "WHAT IS YOUR FAVOURITE COLOUR?"} <= made
    bare = [typed(rng, "hello nano", bare=True) for _ in range(500)]
    assert not any(text.lower().startswith(("so ", "ok", "well")) for text in bare)


def test_tools_and_questions_are_composed() -> None:
    rng = random.Random(5)
    drawn = [unseen_tools.unseen(rng) for _ in range(500)]
    assert len({tool.name for tool in drawn}) > 450
    assert len({argument.name for tool in drawn for argument in tool.arguments}) > 350
    for tool in (*drawn, *(everyday_tools.everyday(rng) for _ in range(500))):
        values = [argument.draw(rng) for argument in tool.arguments]
        asked = tool.ask(rng, values)
        assert all(tool_kinds.spoken(value) in asked for value in values)
        assert not {"{", "[", "]"} & set(asked)
    assert len({problems.make_problem(rng).question for _ in range(300)}) == 300


def test_frequent_wordings_come_more_often_than_by_their_number() -> None:
    rng = random.Random(6)
    for name in ("test", "history"):
        intent, lists = talk.intents()[name], talk.word_lists()
        short = {fill(rng, text, lists, {}) for pattern in intent.frequent for text in parse(pattern).texts()}
        drawn = [talk.plain(talk.talk_about(rng, name).messages[0]["content"]) for _ in range(400)]
        assert sum(text in {talk.plain(one) for one in short} for text in drawn) > 0.15 * len(drawn)


def test_two_questions_have_both_answers_in_their_order() -> None:
    rng = random.Random(7)
    answers = {text for name, one in talk.intents().items() if not one.copied for text in talk.answers_of(name, "")}
    for _ in range(50):
        item = talk.make_two(rng)
        said, thought = item.messages[1]["content"], item.messages[1]["reasoning_content"]
        cuts = [end for end in range(len(said)) if said[end] == " " and {said[:end], said[end + 1 :]} <= answers]
        assert cuts
        orders = [
            f"{first.thought} {second.thought}"
            for first in talk.intents().values()
            for second in talk.intents().values()
            if said.startswith(tuple(answer.partition("{")[0] for answer in first.answers if answer[0] != "{"))
        ]
        assert thought in orders


def test_another_one_is_not_the_same_again() -> None:
    rng = random.Random(8)
    for _ in range(100):
        _, first, _, second = (message["content"] for message in talk.make_again(rng).messages)
        assert first != second or first in ("Heads!", "Tails!")
