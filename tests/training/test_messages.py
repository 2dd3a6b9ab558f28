"""Conversations as a source of documents: shards with marks, packing, and what becomes of long ones."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv4.training.data import BatchReader, open_sources
from dsv4.training.documents import LEARN, shard_of
from dsv4.training.recipe import Recipe
from dsv4.training.settings import SourceSettings
from tests.training.runs import Letters, raw_recipe


def talk(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(file: Path, lines: list[Any]) -> Path:
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return file


def source(file: Path, **fields: Any) -> dict[str, Any]:
    return {"name": "talks", "kind": "messages", "path": str(file), **fields}


def recipe(file: Path, length: int = 64, **fields: Any) -> Recipe:
    data = {"tokenizer": "letters", "pool": 4, "micro": 128, "fim": 0.5, "sources": [source(file, **fields)]}
    stages = [{"tokens": 1000, "length": length}]
    return Recipe.from_dict(raw_recipe(data=data, stages=stages, qat_from=None))


TALKS = [talk("a" * n, "b" * (n % 7 + 1)) for n in range(1, 20)]


def test_a_shard_keeps_what_is_learned(tmp_path: Path) -> None:
    settings = SourceSettings(**source(write(tmp_path / "t.jsonl", TALKS)))
    shard = shard_of(settings, Letters(), tmp_path / "data")
    for number, conversation in enumerate(TALKS):
        document = shard.document(number)
        ((tokens, learn),), _ = Letters().encode_conversation(conversation)
        assert list(document.tokens) == tokens
        assert list(document.learn) == learn
    assert shard.learned == sum(n % 7 + 2 for n in range(1, 20))
    # and notices when the marks were changed
    file = next((tmp_path / "data").glob(f"*/{LEARN}"))
    marks = bytearray(file.read_bytes())
    marks[3] ^= 1
    file.write_bytes(marks)
    again = shard_of(settings, Letters(), tmp_path / "data")
    assert list(again.document(1).learn) == list(shard.document(1).learn)


def test_batches_learn_answers_alone_and_nothing_is_told_out_of_order(tmp_path: Path) -> None:
    made = recipe(write(tmp_path / "t.jsonl", TALKS))
    codec = Letters()
    reader = BatchReader(open_sources(made, codec, tmp_path / "data"), made.data, made.schedule, codec)
    known = {tuple(t): learn for c in TALKS for t, learn in codec.encode_conversation(c)[0]}
    seen = 0
    for step in range(4):
        for batch in reader.fetch(step):
            parts = batch.tokens_T.split(list(batch.lengths))
            for part, learn in zip(parts, batch.learn_T.split(list(batch.lengths)), strict=True):
                assert known[tuple(part.tolist())] == learn.tolist()
                seen += 1
    assert seen > 20


def test_longer_conversations_are_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(tmp_path / "t.jsonl", [*TALKS, talk("a" * 80, "b"), talk("a", "b" * 80)])
    codec = Letters()
    for longer, told, kept in (("skip", "2 are left out", 0), ("cut", "1 are cut there, 1 are left out", 1)):
        made = recipe(file, longer=longer)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            sources = open_sources(made, codec, tmp_path / "data")
        assert f"2 of 21 examples have more than 64 tokens: {told}" in caplog.text
        reader = BatchReader(sources, made.data, made.schedule, codec)
        lengths = [n for step in range(8) for batch in reader.fetch(step) for n in batch.lengths]
        assert max(lengths) <= 64
        assert (64 in lengths) == bool(kept)


def test_only_long_conversations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1 of 1 examples have more than 64 tokens, none can be learned"):
        open_sources(recipe(write(tmp_path / "t.jsonl", [talk("a" * 80, "b")])), Letters(), tmp_path / "data")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([TALKS[0], "{"], r"t.jsonl, line 2: no conversation: not valid JSON"),
        ([TALKS[0], "", "[1]"], r"t.jsonl, line 3: no conversation, but a list"),
        ([], r"source talks: no conversation found under .*t.jsonl"),
        ([" "], r"source talks: no conversation found under .*t.jsonl"),
    ],
)
def test_faults_name_file_and_line(tmp_path: Path, lines: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_sources(recipe(write(tmp_path / "t.jsonl", lines)), Letters(), tmp_path / "data")


def test_faults_in_fields_name_file_and_line(tmp_path: Path) -> None:
    from dsv4.encoding import train_bpe

    codec = train_bpe(["words"], 300, tmp_path / "tokenizer")
    file = write(tmp_path / "t.jsonl", [TALKS[0], {"messages": [{"role": "user", "content": "a"}]}])
    with pytest.raises(ValueError, match=r"t.jsonl, line 2: messages: no message has the role assistant"):
        open_sources(recipe(file), codec, tmp_path / "data")


def test_a_folder_of_files(tmp_path: Path) -> None:
    (tmp_path / "talks").mkdir()
    write(tmp_path / "talks" / "a.jsonl", TALKS[:2])
    write(tmp_path / "talks" / "b.ndjson", TALKS[2:5])
    shard = shard_of(SourceSettings(**source(tmp_path / "talks")), Letters(), tmp_path / "data")
    assert shard.count == 5
    assert shard.lengths.tolist() == [n + n % 7 + 1 + 2 for n in range(1, 6)]
    assert np.all(shard.document(4).tokens == Letters().encode_conversation(TALKS[4])[0][0][0])
