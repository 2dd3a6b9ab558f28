"""Small vocabularies in the released form."""

import json
from pathlib import Path

import pytest

from dsv4.encoding import V4, Tokenizer, train_bpe


def test_round_trip_and_control_ids(tiny: Tokenizer, corpus: str) -> None:
    for text in (corpus, "never seen: Привет, 𒀀!", " \n\t ", "12345678"):
        assert tiny.decode(tiny.encode_text(text)) == text
    ids = [tiny.token_id(token) for token in V4.control_tokens]
    assert ids == list(range(len(ids)))
    assert V4.control_tokens[:3] == (V4.bos, V4.eos, V4.pad)
    assert (tiny.bos_id, tiny.eos_id, tiny.token_id(tiny.dialect.pad)) == (0, 1, 2)
    assert tiny.vocab_size == 400


def test_merges_were_learned(tiny: Tokenizer, corpus: str) -> None:
    assert len(tiny.encode_text(corpus)) < len(corpus.encode()) / 2
    assert len(tiny.encode_text("1234567")) >= 3, "digits group by three at most"


def test_training_is_deterministic(tmp_path: Path, corpus: str) -> None:
    texts = [corpus, "more text " * 9]
    train_bpe(iter(texts), 400, tmp_path / "a")
    train_bpe(iter(texts), 400, tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_written_files(tmp_path: Path) -> None:
    train_bpe(["tiny"], 300, tmp_path, model_max_length=64)
    added = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    assert [token["content"] for token in added] == list(V4.control_tokens)
    assert [token["content"] for token in added if token["special"]] == [V4.bos, V4.eos, V4.pad]
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert (config["bos_token"], config["eos_token"], config["model_max_length"]) == (V4.bos, V4.eos, 64)
    assert Tokenizer.load(tmp_path / "tokenizer.json").vocab_size <= 300


def test_control_text_in_the_corpus_is_only_text(tmp_path: Path) -> None:
    tokenizer = train_bpe(["<think> and </think> " * 50], 400, tmp_path)
    assert tokenizer.token_id("<think>") not in tokenizer.encode_text("<think>")


def test_vocabulary_without_room_for_bytes(tmp_path: Path) -> None:
    least = len(V4.control_tokens) + 256
    with pytest.raises(ValueError, match=f"vocab_size must be at least {least} .* got 100"):
        train_bpe(["x"], 100, tmp_path)
