"""Documents, shards, packing and the feed: nothing lost, nothing twice, the same again after a restart."""

import errno
import gzip
import json
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsv4.training import documents as documents_module
from dsv4.training.data import BatchReader, open_sources
from dsv4.training.documents import Document, GeneratedDocuments, named_function, shard_of
from dsv4.training.packing import best_fit, cut
from dsv4.training.recipe import SourceSettings
from dsv4.training.source_texts import files_of, texts_of
from tests.training.runs import VOCABULARY, Letters, raw_recipe, recipe


@given(st.lists(st.integers(1, 50), max_size=60))
def test_best_fit_places_every_document_once(lengths: list[int]) -> None:
    bins = best_fit(lengths, 50)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in b) <= 50 for b in bins)
    if lengths:  # two bins that would fit into one are never left
        sizes = sorted(sum(lengths[i] for i in b) for b in bins)
        assert len(sizes) < 2 or sizes[0] + sizes[1] > 50


def test_best_fit_fills_the_fullest_bin_that_has_room() -> None:
    assert best_fit([6, 5, 4, 3], 10) == [[0, 2], [1, 3]]
    with pytest.raises(ValueError, match=r"lengths must be in 1\.\.10, got 5 to 11"):
        best_fit([5, 11], 10)


def test_cut() -> None:
    assert cut(10, 4) == [(0, 4), (4, 8), (8, 10)]


def settings(path: Path, **changes: object) -> SourceSettings:
    return SourceSettings(name="s", path=str(path), **{"kind": "text", **changes})  # type: ignore


def test_text_becomes_documents_at_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\n" + "x" * 30 + "\n\nlast\n")
    (tmp_path / "b.txt").write_text("\n \n")
    (tmp_path / "c.bin").write_text("not text")
    shard = shard_of(settings(tmp_path, characters=8), Letters(), tmp_path / "shards")
    codec = Letters()
    texts = ["one\n\ntwo\n\n", "x" * 30 + "\n\n", "last\n"]
    assert [list(shard.document(i).tokens) for i in range(shard.count)] == [
        [0, *codec.encode_text(text), 1] for text in texts
    ]
    assert shard.tokens == sum(len(t) + 2 for t in texts)


def test_shards_are_made_once_and_again_when_files_change(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps({"text": "abc"}) + "\n\n" + json.dumps({"text": "de"}) + "\n")
    told: list[int] = []
    make = lambda: shard_of(settings(file, kind="jsonl"), Letters(), tmp_path / "s", lambda _, n: told.append(n))  # noqa: E731
    assert make().count == 2
    make()
    assert told == [5, 9]
    file.write_text(json.dumps({"text": "abcd"}) + "\n")
    assert make().count == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "no JSON object with the key 'text': not valid JSON .* at column 2"),
        ('{"body": "x", "id": 1}', "no JSON object with the key 'text'; its keys are 'body', 'id'"),
        ("{}", "no JSON object with the key 'text'; its keys are none"),
        ('["x"]', "no JSON object with the key 'text', but a list"),
        ("3", "no JSON object with the key 'text', but a number"),
        ('{"text": null}', "'text' must be text, got null"),
        ('{"text": [{"role": "user"}]}', "'text' must be text, got a list"),
        ('{"text": "a\\ud83d"}', r"'text' has the lone surrogate \\ud83d at character 2; invalid = \"replace\""),
        ("[" * 100_000, "no JSON object with the key 'text': not valid JSON"),
        ('{"text": "caf\udce9"}', "column 14: 0xe9 is not valid UTF-8"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "d.jsonl"
    file.write_bytes(b'{"text": "ok"}\r\n' + line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(ValueError, match=r"d\.jsonl, line 2[:,] ?" + message):
        shard_of(settings(file, kind="jsonl"), Letters(), tmp_path / "s")
    assert not list((tmp_path / "s").iterdir())


def test_invalid_text_is_replaced_on_request(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_bytes(b'{"text": "a\\ud83d"}\n{"text": "\xe9"}\n{"text": "\\ud83d\\ude00"}\n')
    chosen = settings(file, kind="jsonl", invalid="replace")
    assert list(texts_of(chosen, files_of(chosen))) == ["a\ufffd", "\ufffd", "😀"]


def test_a_folder_of_json_lines_is_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    line = lambda text: json.dumps({"text": text}) + "\n"  # noqa: E731
    (tmp_path / "b" / "1.jsonl").write_text(line("second"), encoding="utf-8-sig")
    (tmp_path / "b" / "2.jsonl.gz").write_bytes(gzip.compress(line("third").encode()))
    (tmp_path / "a.ndjson").write_text(line("first"), encoding="utf-16")
    (tmp_path / "README.md").write_text("not a document")
    (tmp_path / "empty.jsonl").write_text("\n \n")
    chosen = settings(tmp_path, kind="jsonl")
    assert list(texts_of(chosen, files_of(chosen))) == ["first", "second", "third"]
    with pytest.raises(
        ValueError, match=r"no files at .* that end in \.txt; there are .*: kind = \"jsonl\" reads JSON"
    ):
        files_of(settings(tmp_path, suffixes=(".txt",)))
    with pytest.raises(ValueError, match="source s: no text found under"):
        shard_of(settings(tmp_path / "empty.jsonl", kind="jsonl"), Letters(), tmp_path / "s")


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_shard_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps({"text": f"text number {i}"}) + "\n" for i in range(50)))
    chosen = settings(file, kind="jsonl")
    shard = shard_of(chosen, Letters(), tmp_path / "s")
    (made,) = (tmp_path / "s").iterdir()
    killed = made.with_name(f"{made.name}.{2**30}.new")  # no process has such a number
    killed.mkdir()
    tokens = next((tmp_path / "s").glob("*/tokens.bin"))
    content = tokens.read_bytes()
    if damage == "gone":
        tokens.unlink()
    else:
        tokens.write_bytes(content[: len(content) * 7 // 10] if damage == "cut" else b"\1" + content[1:])
    again = shard_of(chosen, Letters(), tmp_path / "s")
    assert "it is made again from its source" in caplog.text
    assert not killed.exists()
    assert (again.digest, tokens.read_bytes()) == (shard.digest, content)


def test_a_full_disk_leaves_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"text": "ok"}\n')

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(documents_module.np, "save", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*s-[0-9a-f]+\."):
        shard_of(settings(file, kind="jsonl"), Letters(), tmp_path / "s")
    assert not list((tmp_path / "s").iterdir())


def fails(rng: random.Random, codec: Letters, what: str) -> object:
    if what == "raises":
        return {}["key"]
    return 7 if what == "number" else Document([0, VOCABULARY, 1])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("raises", r"for document 0 raised KeyError: 'key' \(.*test_data\.py, line \d+\)"),
        ("number", "for document 0 returned int; it must return text or a Document"),
        ("outside", r"for document 0 returned token 97; tokens must be in \[0, 97\)"),
    ],
)
def test_generators_that_fail_are_named(what: str, message: str) -> None:
    chosen = SourceSettings("s", "generator", "tests.training.test_data:fails", options={"what": what})
    with pytest.raises(ValueError, match=f"source s: tests.training.test_data:fails {message}"):
        GeneratedDocuments(chosen, Letters(), 0)


def test_missing_sources_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="source s: no files at"):
        shard_of(settings(tmp_path / "nowhere"), Letters(), tmp_path / "s")
    with pytest.raises(ValueError, match=r"source s: path 'os:nothing' is no module:function"):
        GeneratedDocuments(SourceSettings("s", "generator", "os:nothing"), Letters(), 0)
    (tmp_path / "broken_module.py").write_text("this is no Python")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"'broken_module:make' is no module:function \(SyntaxError: "):
        GeneratedDocuments(SourceSettings("s", "generator", "broken_module:make"), Letters(), 0)
    with pytest.raises(ValueError, match="has no option 'mist'"):
        GeneratedDocuments(
            SourceSettings("s", "generator", "tests.training.runs:counting", options={"mist": 1}), Letters(), 0
        )


def test_a_function_of_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed command has the folder of its script on the path, not the one where people work."""
    (tmp_path / "module_of_mine.py").write_text("def make(rng):\n    return 'text'\n")
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    monkeypatch.chdir(tmp_path)
    assert named_function("source s", "module_of_mine:make", {})(None) == "text"


def text_feed(folder: Path, *, start=None, rank: int = 0, world: int = 1, **data: object) -> BatchReader:
    (folder / "texts").mkdir(exist_ok=True)
    for i in range(40):
        (folder / "texts" / f"{i}.txt").write_text(chr(97 + i % 26) * (5 + 7 * i % 90))
    source = {"name": "t", "kind": "text", "path": str(folder / "texts")}
    made = recipe(data={**raw_recipe()["data"], "sources": [source], **data})
    codec = Letters()
    sources = open_sources(made, codec, folder / "shards")
    return BatchReader(sources, made.data, made.schedule, codec, seed=5, rank=rank, world=world, start=start)


def documents(batches) -> list[tuple[int, ...]]:
    return [tuple(part.tolist()) for b in batches for part in b.tokens_T.split(b.lengths)]


def test_an_epoch_gives_every_document_once(tmp_path: Path) -> None:
    feed = text_feed(tmp_path)
    seen: Counter[int] = Counter()
    for step in range(12):
        for b in feed.fetch(step):
            assert len(b.tokens_T) <= 128 + 96
            for document in b.tokens_T.split(b.lengths):
                seen[len(document)] += document[0] == 0
    assert feed.position(12).next[0] >= 40
    first_epoch = Counter(len(chr(97) * (5 + 7 * i % 90)) + 2 for i in range(40) if 5 + 7 * i % 90 + 2 <= 64)
    assert all(seen[length] >= count for length, count in first_epoch.items())


def test_a_restart_and_a_second_look_give_the_same(tmp_path: Path) -> None:
    feed = text_feed(tmp_path, fim=0.5)
    steps = [documents(feed.fetch(step)) for step in range(10)]
    assert documents(feed.fetch(3)) == steps[3]
    again = text_feed(tmp_path, fim=0.5, start=(6, feed.position(6)))
    assert [documents(again.fetch(step)) for step in range(6, 10)] == steps[6:]
    feed.forget(5)
    with pytest.raises(KeyError, match="step 4 has been forgotten"):
        feed.fetch(4)


def test_ranks_share_the_sequences_of_one(tmp_path: Path) -> None:
    alone = [sorted(documents(text_feed(tmp_path).fetch(0)))]
    two = [text_feed(tmp_path, rank=rank, world=2).fetch(0) for rank in range(2)]
    both = sorted(d for batches in two for d in documents(batches))
    assert set(alone[0]) <= set(both)


def test_fill_in_the_middle_loses_no_token(tmp_path: Path) -> None:
    plain, told = text_feed(tmp_path), text_feed(tmp_path, fim=1.0, pool=64)
    begin, hole, end = (Letters().token_id(t) for t in ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"))
    texts = {tuple(plain._sources[0].document(i).tokens) for i in range(40)}
    whole = [d for d in documents(told.fetch(0)) if d[0] == 0 and d[-1] == 1 and begin in d]
    assert whole
    for d in whole:
        assert d[1] == begin
        prefix, suffix, middle = d[2 : d.index(hole)], d[d.index(hole) + 1 : d.index(end)], d[d.index(end) + 1 : -1]
        assert (0, *prefix, *middle, *suffix, 1) in texts


def test_sources_get_their_shares(tmp_path: Path) -> None:
    common = {"kind": "generator", "path": "tests.training.runs:counting"}
    sources = [{"name": "a", "weight": 3.0, **common}, {"name": "b", "weight": 1.0, **common, "options": {"most": 20}}]
    stages = [{"tokens": 9000, "length": 64}]
    made = recipe(data={**raw_recipe()["data"], "sources": sources, "pool": 40}, stages=stages)
    feed = BatchReader(open_sources(made, Letters(), tmp_path), made.data, made.schedule, Letters())
    for step in range(11):
        feed.fetch(step)
    a, b = feed.position(11).given
    assert 0.72 < a / (a + b) < 0.78


def test_sources_of_some_lengths_are_read_in_those_stages_only(tmp_path: Path) -> None:
    common = {"kind": "generator", "path": "tests.training.runs:counting"}
    sources = [
        {"name": "short", **common, "options": {"most": 20}, "lengths": [64]},
        {"name": "long", **common, "options": {"most": 40}, "lengths": [128]},
        {"name": "both", **common, "options": {"most": 20}},
    ]
    stages = [{"tokens": 4000, "length": 64}, {"tokens": 4000, "length": 128}]
    made = recipe(data={**raw_recipe()["data"], "sources": sources}, stages=stages)
    feed = BatchReader(open_sources(made, Letters(), tmp_path), made.data, made.schedule, Letters())
    at = [feed.position(0)]
    while at[-1].tokens < 7000:
        feed.fetch(len(at) - 1)
        at.append(feed.position(len(at)))
    first, second = ([p for p in at[1:] if p.length == length] for length in (64, 128))
    assert first[-1].next[1] == 0
    assert first[-1].next[0] > 0
    assert second[-1].next[0] == second[0].next[0]
    # the shares start anew with a stage: no source has to catch up
    assert all(0.35 < p.given[1] / sum(p.given) < 0.65 for p in second if sum(p.given) > 1000)
    with pytest.raises(ValueError, match=r"source odd: lengths must be among those of stages, 64, 128"):
        recipe(data={**raw_recipe()["data"], "sources": [{"name": "odd", **common, "lengths": [65]}]}, stages=stages)
    with pytest.raises(ValueError, match=r"data.sources: none has the stage's length 128 among its lengths"):
        recipe(data={**raw_recipe()["data"], "sources": sources[:1]}, stages=stages)


def test_learn_weights_arrive() -> None:
    made = recipe()
    feed = BatchReader(open_sources(made, Letters(), Path()), made.data, made.schedule, Letters())
    assert all(torch.equal(b.learn_T, torch.ones(len(b.tokens_T))) for b in feed.fetch(0))
