"""Generated conversations: they render in every mode, parse back, and exactly the assistant's words are learned."""

import itertools
import json
import random
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from dsv4.encoding import V4, Tokenizer, encode_messages, parse_message_from_completion_text, served
from dsv4.posttraining.verifiers import reward
from recipes.nano.items import copies, english, facts, far, lookups, needles, recall, talk, tools, warm_up
from recipes.nano.items.item import HELD_OUT_SHARE, Item, draw
from recipes.nano.items.mix import Mode, document, encode, makers, messages_of, prompt_of, said, table
from recipes.nano.items.words import NAMES
from tests.conftest import ROOT

DRAWS = 40
WRITTEN = replace(V4, empty_line=served(V4).empty_line)
MODES: tuple[Mode, ...] = ("chat", "thinking", "max")
# what precedes the assistant's words in the prompt, and the words with their end
SAYING = re.compile(
    "(?:<｜Assistant｜>(?:<think>|</think>)(?:<｜action｜>)?|<｜query｜>|<｜title｜>)(.*?<｜end▁of▁sentence｜>)",
    re.DOTALL,
)


@pytest.fixture(scope="module")
def codec() -> Tokenizer:
    return Tokenizer.load(ROOT / "models" / "nano")


def learned_runs(tokens: list[int], learn: list[float], codec: Tokenizer) -> list[str]:
    """The texts of the learned stretches; the end of a turn ends one."""
    runs: list[list[int]] = [[]]
    for token, weight in zip(tokens, learn, strict=True):
        if weight:
            runs[-1].append(token)
        if (not weight or token == codec.eos_id) and runs[-1]:
            runs.append([])
    return [codec.decode(run) for run in runs if run]


def rendered(item: Item, mode: Mode) -> str:
    effort = "max" if mode == "max" else None
    shown = messages_of(item, mode == "max")
    thinking = "chat" if mode == "chat" else "thinking"
    return encode_messages(shown, thinking, reasoning_effort=effort, dialect=WRITTEN)


@pytest.mark.parametrize("name", makers())
def test_items_render_parse_back_and_are_learned(name: str, codec: Tokenizer) -> None:
    rng = random.Random(name)
    for _ in range(DRAWS):
        item = draw(makers()[name], rng)
        assert item.domain in ("math", "state", "search", "tools", "facts", "talk")
        answers = [m for m in item.messages if m["role"] == "assistant"]
        asked = encode_messages(prompt_of(item), "thinking", dialect=WRITTEN)
        assert rendered(item, "thinking").startswith(asked)
        assert prompt_of(item)[-1]["role"] == "user" or prompt_of(item)[-1]["task"] == "title"
        assert reward(item.verifier, answers[-1]["content"], item.answer) == 1.0
        assert reward(item.verifier, "something else", item.answer) == 0.0
        for mode in MODES:
            tokens = encode(codec, messages_of(item, mode == "max"), mode)
            runs = learned_runs(tokens, said(tokens, codec), codec)
            # the same by the rendered text instead of the tokens
            assert runs == SAYING.findall(rendered(item, mode))
            assert len(runs) == len(answers)
            assert not runs[-1].count("<｜User｜>")
            for run, answer in zip(runs, answers, strict=True):
                form = "thinking" if "</think>" in run else "chat"
                message = parse_message_from_completion_text(run, form)
                assert message["content"] == answer["content"]
                calls = [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in message["tool_calls"]]
                wanted = answer.get("tool_calls") or ()
                assert calls == [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in wanted]
            has_task = any("task" in m for m in item.messages)
            assert ("</think>" in runs[-1]) == (mode != "chat" and not has_task)


_TYPES: dict[str, tuple[type, ...]] = {"string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,)}


def assert_valid(name: str, arguments: dict[str, Any], offered: tuple[dict[str, Any], ...]) -> None:
    functions = {tool["function"]["name"]: tool["function"] for tool in offered}
    assert len(functions) == len(offered)
    schema = functions[name]["parameters"]
    assert set(schema.get("required", ())) <= set(arguments) <= set(schema["properties"])
    for key, value in arguments.items():
        about = schema["properties"][key]
        assert type(value) in _TYPES[about["type"]]
        assert value in about.get("enum", [value])


@pytest.mark.parametrize("name", [name for name in makers() if name.startswith("tools.")])
def test_calls_are_valid_and_answered(name: str) -> None:
    rng = random.Random(name)
    numbers = Counter[int]()
    for _ in range(200):
        item = draw(makers()[name], rng)
        assert 1 <= len(item.tools) <= 4
        ids = [m["tool_call_id"] for m in item.messages if m["role"] == "tool"]
        assert len(set(ids)) == len(ids)
        made = [call for m in item.messages for call in m.get("tool_calls") or ()]
        assert [call["id"] for call in made] == ids
        for call in made:
            arguments = json.loads(call["function"]["arguments"])
            assert_valid(call["function"]["name"], arguments, item.tools)
            assert tools.result_of(item, call["function"]["name"], arguments)
        numbers[len(made)] += 1
        said = item.messages[-1]["content"]
        assert reward(item.verifier, said, item.answer) == 1.0
    assert len(numbers) > 2


@pytest.mark.parametrize("name", [name for name in makers() if name.startswith("tools.")])
def test_a_thought_names_the_tool_or_the_right_name_that_its_call_uses(name: str) -> None:
    rng = random.Random(name)
    for _ in range(60):
        for message in draw(makers()[name], rng).messages:
            for call in message.get("tool_calls") or ():
                thought, tool = message["reasoning_content"], call["function"]["name"]
                right = thought.partition("The right name is ")[2].removesuffix(".")
                again = right and right in json.loads(call["function"]["arguments"]).values()
                assert again or f"I need {tool}" in thought or f"and {tool}" in thought


def test_a_wish_that_no_tool_fulfils_names_all_that_are_offered() -> None:
    rng = random.Random(2)
    for _ in range(60):
        item = draw(tools.make_unfit, rng)
        last = item.messages[-1]
        assert "tool_calls" not in last
        assert all(tool["function"]["name"] in last["reasoning_content"] for tool in item.tools)


def test_a_call_that_is_not_in_the_item_gets_an_error() -> None:
    item = draw(tools.make_chain, random.Random(1))
    assert tools.result_of(item, "no_such_tool", {}) == "error: not found"


def test_every_intent_has_wordings_and_answers() -> None:
    assert len(talk.intents()) >= 90
    for intent, about in talk.intents().items():
        rng = random.Random(intent)
        wordings = {talk.plain(rng.choice(talk.patterns(intent)).draw(rng)) for _ in range(400)}
        assert len([text for text in wordings if not talk.held_out(text)]) >= 40, intent
        assert len(set(about.answers)) == len(about.answers) <= 3
        for _ in range(30):
            item = talk.talk_about(rng, intent)
            assert item.messages[-1]["content"] in item.answer


def test_held_out_wordings_never_occur_in_training() -> None:
    held_out = talk.held_out_wordings()
    assert len(held_out) == 100
    assert set(held_out.values()) <= set(talk.intents())
    rng = random.Random(2)
    seen = set()
    for _ in range(5000):
        item = draw(rng.choice((talk.make_talk, talk.make_mixed_talk, tools.make_no_tool)), rng)
        seen |= {talk.plain(m["content"]) for m in item.messages if m["role"] == "user"}
    assert not seen & set(held_out)
    assert len(seen) > 2000


@pytest.mark.parametrize("name", makers())
def test_training_and_held_out_items_are_disjoint(name: str) -> None:
    rng = random.Random(name)
    train = {draw(makers()[name], rng).question for _ in range(60)}
    graded = {draw(makers()[name], rng, held_out=True).question for _ in range(20)}
    assert not train & graded
    assert len(graded) > 20 / HELD_OUT_SHARE


@pytest.mark.parametrize("length", [256, 1024, 4096])
def test_needles_fill_the_length(length: int, codec: Tokenizer) -> None:
    item = needles.make_needle(random.Random(length), length, needles=5, turns=1, count=lambda s: _size(codec, s))
    text = item.messages[0]["content"]
    assert 0.97 * length - 40 <= _size(codec, text) <= length + 20
    assert item.answer in text
    assert item.messages[1]["content"] in text


def _size(codec: Tokenizer, text: str) -> int:
    return len(codec.encode_text(text))


@pytest.mark.parametrize("length", [255, 1_048_577])
def test_needles_refuse_other_lengths(length: int) -> None:
    with pytest.raises(ValueError, match="length must be in"):
        needles.make_needle(random.Random(0), length)


def test_warm_up_repeats(codec: Tokenizer) -> None:
    rng = random.Random(3)
    for _ in range(30):
        made = warm_up.document(rng, codec, length=300)
        assert made.learn is not None
        assert len(made.tokens) == 300
        assert set(made.learn) == {1.0}
    made = warm_up.document(random.Random(4), codec, length=300, new=0.0)
    assert made.learn is not None
    assert 0.3 < sum(made.learn) / 300 < 1.0
    with pytest.raises(ValueError, match="new must be"):
        warm_up.document(rng, codec, new=2.0)


def test_english_is_long_and_repeatable(codec: Tokenizer) -> None:
    assert sum(map(len, english.python_texts())) > 200_000
    first, second = (english.document(random.Random(5), codec, length=500) for _ in range(2))
    assert list(first.tokens) == list(second.tokens)
    assert len(first.tokens) == 500
    held_out = set(english.python_texts(held_out=True))
    assert len(held_out) > 50
    assert not held_out & set(english.python_texts())
    item = english.make_story(random.Random(6), turns=3)
    assert item.answer in item.messages[0]["content"]
    assert 5 <= item.messages[0]["content"].count(".") <= 13


def test_documents_of_all_modes_learn_what_the_assistant_says(codec: Tokenizer) -> None:
    modes = Counter[str]()
    for number in range(150):
        made = document(random.Random(number), codec, length=1024)
        assert made.learn is not None
        tokens, text = list(made.tokens), codec.decode(made.tokens)
        assert len(tokens) <= 1024
        whole = [run for run in learned_runs(tokens, list(made.learn), codec) if run.endswith("<｜end▁of▁sentence｜>")]
        turns = SAYING.findall(text)
        silent = "DSML" in text and whole == turns[-1:]  # see the next test
        assert silent or whole == turns
        assert 0 < sum(made.learn) < len(tokens)
        modes["max" if "Absolute maximum" in text else "thinking" if "<think>" in text else "chat"] += 1
    assert min(modes[mode] for mode in MODES) > 5


def test_some_conversations_with_tools_have_lost_their_thoughts(codec: Tokenizer) -> None:
    """Clients that do not know thoughts send none back. Such turns are shown, never learned: nothing calls without a
    thought because of them."""
    lost = 0
    for number in range(120):
        made = document(random.Random(number), codec, length=2000, weights={"tools": 1}, chat=0, deep=0)
        assert made.learn is not None
        turns, text = SAYING.findall(codec.decode(made.tokens)), codec.decode(made.tokens)
        learned = learned_runs(list(made.tokens), list(made.learn), codec)
        if any(turn.startswith("</think>") for turn in turns):
            lost += 1
            assert all(turn.startswith("</think>") for turn in turns[:-1])
            assert learned == turns[-1:]
            assert "<think></think>" in text
        assert not any(turn.startswith("</think>") for turn in learned)
    assert 5 < lost < 30


@pytest.mark.parametrize("name", ["ordering.count", "ordering.extreme", "ordering.sort"])
def test_a_thought_about_a_list_ends_with_the_answer(name: str) -> None:
    rng = random.Random(name)
    for _ in range(200):
        item = makers()[name](rng)
        thought = item.messages[-1]["reasoning_content"]
        wanted = item.answer if isinstance(item.answer, list) else [item.answer]
        assert [int(n) for n in re.findall(r"-?\d+", thought)][-len(wanted) :] == wanted
        assert not re.search("True|False", thought)


def test_weights_choose_families_and_makers(codec: Tokenizer) -> None:
    assert set(table({"talk.talk": 1, "tools": 0})) == {"talk.talk"}
    assert sum(table().values()) == pytest.approx(1)
    shares = table({"tools": 1, "tools.unseen": 0.5})
    assert shares["tools.unseen"] > shares["tools.chain"]
    with pytest.raises(ValueError, match="no such family"):
        table({"poems": 1})
    with pytest.raises(ValueError, match="at least one"):
        table({"talk": 0})
    with pytest.raises(ValueError, match="at least 0"):
        table({"talk": -1})
    with pytest.raises(ValueError, match="chat and deep"):
        document(random.Random(0), codec, chat=0.8, deep=0.5)
    needle = {"needles.needle": {"length": 512, "turns": 1}}
    made = document(random.Random(1), codec, weights={"needles": 1}, arguments=needle, chat=1, deep=0)
    assert len(made.tokens) > 400


def test_a_title_follows_an_answer_as_a_server_shows_it(codec: Tokenizer) -> None:
    for number in range(20):
        made = document(random.Random(number), codec, weights={"quick.title": 1}, chat=0, deep=0)
        text = codec.decode(made.tokens)
        assert text.count("<｜title｜>") == 1
        assert "<think>" not in text


def test_what_is_asked_far_back_was_said_before(codec: Tokenizer) -> None:
    rng = random.Random(5)
    for length in (128, 400, 2000):
        for _ in range(10):
            made = far.document(rng, codec, length=length)
            assert made.learn is not None
            assert len(made.tokens) == len(made.learn) <= length + 40
            before = codec.decode(list(made.tokens[: made.learn.index(1.0)]))
            answers = "".join(
                codec.decode([token]) if on else "|" for token, on in zip(made.tokens, made.learn, strict=True)
            )
            assert all(answer in before for answer in answers.split("|")[:-1])
    sizes = {len(far.document(rng, codec, length=2000, shortest=150).tokens) // 100 for _ in range(30)}
    assert min(sizes) < 5
    assert max(sizes) > 9
    for wrong in ({"length": 100}, {"length": 300, "shortest": 100}, {"length": 300, "shortest": 400}):
        with pytest.raises(ValueError, match="length must be"):
            far.document(rng, codec, **wrong)


SUM = re.compile(r"\d\d ?(?:[+*x-]|plus|minus|times) ?\d\d")
COLUMN = re.compile(r"\d[+*-]\d+.*[=:]")


@pytest.mark.parametrize("name", sorted(makers()))
def test_no_thought_leaves_out_the_work(name: str) -> None:
    """A sum that one family's items answer without work is answered so wherever it is asked. Only a tool spares it, and
    a question that is answered by one word of an action or a query."""
    rng = random.Random(7)
    for _ in range(100):
        item = makers()[name](rng)
        for asked, answer in itertools.pairwise(item.messages):
            thought = answer.get("reasoning_content", "")
            assert not re.fullmatch(r"\d+ [+*-] \d+ = -?\d+", thought)
            if item.tools or asked["role"] != "user" or asked.get("task"):
                continue
            assert not re.match(r"\d+ [+*-] \d+ =", answer["content"])
            if SUM.search(asked["content"]):
                assert COLUMN.search(thought), (asked["content"], thought)


@pytest.mark.parametrize("name", ["one_kind", "mixed", "missing"])
def test_short_texts_with_one_question_mostly_have_the_answer(name: str) -> None:
    """What is asked first is thought about in conversations of one question alone: there, few facts must not mean that
    none answers, and a name that no fact has must come behind other questions too."""
    rng = random.Random(name)
    drawn = [makers()[f"facts.{name}"](rng) for _ in range(800 if name == "missing" else 400)]
    items = [item for item in drawn if item.task == name][:400]
    assert len(items) > 350
    single = [item for item in items if len(item.messages) == 2]
    assert len(single) > len(items) * (0.3 if name == "missing" else 0.6)
    assert len(single) < len(items) * (0.7 if name == "missing" else 1)
    if name != "missing":
        assert sum(item.messages[0]["content"].count(".") <= 5 for item in single) > 0.3 * len(single)
        return
    for item in items:
        stranger = item.messages[-1]["content"].split()[-1].rstrip(".")
        assert sum(message["content"].count(stranger) for message in item.messages[:-1]) == 1


def test_a_missing_name_is_made_up_where_those_in_the_text_are() -> None:
    """Also where one of them holds a listed name, or somebody's friend has one: else the list tells what is missing."""
    rng = random.Random(8)
    for name, listed in (("Kateko", False), ("Kate", True)):
        friend = next(kind for kind in facts.KINDS if "friend" in kind.statement)
        like = facts.fact_about(rng, friend, name, "Will", "lamp", False)
        for _ in range(20):
            assert (facts.stranger_to(rng, like.statement, like)[0] in NAMES) == listed


def test_a_recalled_value_followed_its_key_once_before(codec: Tokenizer) -> None:
    rng = random.Random(6)
    for length in (32, 64, 1024):
        for _ in range(10):
            made = recall.document(rng, codec, length=length)
            assert made.learn is not None
            assert len(made.tokens) == len(made.learn) <= length
            first = made.learn.index(1.0) - 1
            known = list(zip(made.tokens[1:first], made.tokens[2:first], strict=False))
            for i, on in enumerate(made.learn):
                if on:
                    assert known.count((made.tokens[i - 1], made.tokens[i])) == 1
    for wrong in ({"length": 31}, {"length": 64, "shortest": 16}, {"length": 64, "shortest": 65}):
        with pytest.raises(ValueError, match="length must be at least"):
            recall.document(rng, codec, **wrong)


def test_rows_of_any_token_come_once_more_behind_their_first_token(codec: Tokenizer) -> None:
    """No row holds a token that steers the conversation, and what is learned stood behind the same token once."""
    rng, met = random.Random(5), set[int]()
    many = 3 * codec.vocab_size  # half as many rows are more than there are tokens to begin them
    for length, shortest, count in ((64, 64, 20), (256, 64, 20), (1024, 64, 20), (many, many, 1)):
        for _ in range(count):
            made = copies.document(rng, codec, length=length, shortest=shortest)
            assert made.learn is not None
            assert len(made.tokens) == len(made.learn) <= length
            assert codec.controls.keys().isdisjoint(made.tokens[1:])
            met.update(made.tokens)
            end = codec.encode_text("\n")[0]
            shown = made.tokens[1 : made.learn.index(1.0) - 1]
            rows = [tuple(row) for ends, row in itertools.groupby(shown, end.__eq__) if not ends]
            starts = {row[0]: row for row in rows}
            assert len(starts) == len(rows)
            for i in range(len(shown) + 1, len(made.tokens)):
                if made.tokens[i - 1] == end or i == len(shown) + 1:
                    row = starts[made.tokens[i]]
                    assert tuple(made.tokens[i : i + len(row) + 1]) == (*row, end)
                    assert made.learn[i : i + len(row) + 1] == [0.0] + [1.0] * len(row)
    assert len(met) > 0.7 * codec.vocab_size
    for wrong in ({"length": 63}, {"length": 64, "shortest": 63}, {"length": 64, "shortest": 65}):
        with pytest.raises(ValueError, match="length must be at least"):
            copies.document(rng, codec, **wrong)


def test_what_is_repeated_stands_in_the_question() -> None:
    rng = random.Random(8)
    for _ in range(2000):
        item = copies.make_repeat(rng)
        said = item.messages[-1]["content"]
        assert said in item.question
        assert item.answer == (said,)
        if len(said) > 5:  # a short one may be a part of another word
            assert re.findall(rf"\w*{re.escape(said)}\w*", item.question) == [said], "no other word is changed"


def test_a_lookup_finds_what_the_text_has_and_nothing_else(codec: Tokenizer) -> None:
    """Half of what is looked for is missing, and a key has the same tokens in the thought as within the text."""
    rng = random.Random(9)
    kinds = Counter[bool]()
    for length in (48, 200, 1024):
        for _ in range(20):
            made = lookups.document(rng, codec, length=length, shortest=length)
            assert made.learn is not None
            assert len(made.tokens) == len(made.learn)
            text = codec.decode(list(made.tokens[: made.learn.index(1.0)]))
            thoughts = re.findall(r"\nAbout ([\w ]+): (.+)", codec.decode(list(made.tokens)))
            assert thoughts
            for key, answer in thoughts:
                missing = answer == "The text does not say."
                kinds[missing] += 1
                assert (answer in text) != missing
                start, inside = codec.encode_text("\nAbout"), codec.encode_text(f" {key}")
                assert codec.encode_text(f"\nAbout {key}: {answer}")[len(start) :][: len(inside)] == inside
    assert 0.7 < kinds[True] / kinds[False] < 1.4
    asked = Counter[bool]()
    for _ in range(20):
        made = lookups.document(rng, codec, length=400, shortest=400, by_value=1.0)
        thoughts = re.findall(r"\nAbout ([\w ]+): (.+)", codec.decode(list(made.tokens)))
        found = [key for key, answer in thoughts if answer != "The text does not say."]
        assert len(set(found)) == len(found), "a fact that was told before is copied from there"
        asked.update(key in NAMES for key in found)
    assert set(asked) == {False}
    with pytest.raises(ValueError, match="by_value must be in"):
        lookups.document(rng, codec, by_value=1.5)
    for wrong in ({"length": 40}, {"length": 64, "shortest": 47}, {"length": 64, "shortest": 65}):
        with pytest.raises(ValueError, match="length must be at least"):
            lookups.document(rng, codec, **wrong)


def test_several_calls_differ_and_the_answer_needs_every_result() -> None:
    rng = random.Random(12)
    for _ in range(60):
        item = tools.make_several(rng, turns=1)
        *_, calling, answer = [message for message in item.messages if message["role"] == "assistant"]
        calls = [(call["function"]["name"], call["function"]["arguments"]) for call in calling["tool_calls"]]
        assert len(set(calls)) == len(calls) == len(item.answer)
        assert reward(item.verifier, answer["content"], item.answer) == 1.0
        assert reward(item.verifier, " ".join(item.answer[:-1]), item.answer) == float(
            item.answer[-1] in item.answer[:-1]
        )
