"""A long text encoded in pieces has the ids of the whole, in little memory and without holding Python's lock."""

import json
import random
import threading
import time

import pytest

from dsv4.encoding import Tokenizer
from dsv4.encoding.pretokens import LONGEST_WORD, PIECE, cuts_as_released, pieces

PARTS = (
    "a", "b", "Zed", " ", "  ", "\n", "\r\n", "\t", "1", "23", "456789", "人", "工智", "，", "。", "!", "...", "-", "é",
    "\u0301", "\u200b", "\u0663", "²", "💡", "\x00", "ア", "ー", "“", "'s", "the", "\u3000", "\xa0", "_", "\uff21",
    "\uff11", "龥", "\u9fff",
)  # fmt: skip


def random_texts(count: int) -> list[str]:
    draw = random.Random(7)
    return ["".join(draw.choices(PARTS, k=draw.randint(2, 60))) for _ in range(count)]


def test_pieces_have_the_ids_of_the_whole(tiny: Tokenizer) -> None:
    for number, text in enumerate(random_texts(800)):
        cut = [*pieces(text, 1 + number % 5)]
        assert "".join(cut) == text
        assert [token for piece in cut for token in tiny.encode_text(piece)] == tiny.encode_text(text), repr(text)


def test_pieces_have_the_ids_of_the_release(released: Tokenizer) -> None:
    for number, text in enumerate(random_texts(800)):
        parts = [token for piece in pieces(text, 1 + number % 5) for token in released.encode_text(piece)]
        assert parts == released.encode_text(text), repr(text)


def test_long_texts_are_cut(tiny: Tokenizer) -> None:
    text = "".join(random_texts(3000))
    assert len([*pieces(text)]) > 1
    whole = tiny._plain.encode(text, add_special_tokens=False).ids
    assert tiny.encode_text(text) == whole
    assert tiny.decode(whole) == text


@pytest.mark.parametrize("head", ["", "id: ", "\u0663", "x\u06637", "人", "é"])
def test_digits_are_cut_three_by_three(tiny: Tokenizer, head: str) -> None:
    text = head + "".join(str(number) for number in range(300))
    for size in (10, 11, 12):
        cut = [*pieces(text, size)]
        assert "".join(cut) == text
        assert [token for piece in cut for token in tiny.encode_text(piece)] == tiny.encode_text(text)
    assert max(map(len, pieces("7" * 1_000_000))) <= PIECE


def test_a_word_without_end_is_refused(tiny: Tokenizer) -> None:
    assert len([*pieces("x" * LONGEST_WORD)]) == 1
    with pytest.raises(ValueError, match="without a space, a line break or a digit"):
        tiny.encode_text("x" * (LONGEST_WORD + 1) + " and more" * 20)


def test_other_rules_are_not_cut(tiny: Tokenizer) -> None:
    definition = json.loads(tiny.definition_json())
    assert cuts_as_released(definition)
    assert cuts_as_released({**definition, "normalizer": {"type": "Sequence", "normalizers": []}})
    assert not cuts_as_released({**definition, "normalizer": {"type": "NFC"}})
    assert not cuts_as_released({**definition, "pre_tokenizer": None})
    steps = definition["pre_tokenizer"]["pretokenizers"]
    assert not cuts_as_released({**definition, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps[1:]}})
    assert not cuts_as_released({**definition, "pre_tokenizer": {"type": "ByteLevel", "use_regex": True}})


def test_others_get_their_turn(tiny: Tokenizer) -> None:
    """Turns of another thread while a text is encoded; with the lock held there would be next to none."""
    turns, done = 0, threading.Event()

    def count() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    before = turns
    tiny.encode_text("the cat sat on the mat. " * 20_000)
    assert turns - before > 5
    done.set()
    thread.join()


def test_the_longest_token(tiny: Tokenizer) -> None:
    lengths = [len(tiny.token_bytes(token)) for token in range(tiny.vocab_size)]
    assert 2 <= tiny.longest_token <= max(lengths)
