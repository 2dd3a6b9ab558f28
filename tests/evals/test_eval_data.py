"""Rows of a suite: every place they can come from, and what is said where there are none."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from dsv4.cli.eval import eval as run_eval
from dsv4.evals.data import chosen, load, read_rows
from dsv4.evals.registry import suite_named, suite_names
from dsv4.evals.suite import Generate, HubData, Item, PackageData, Row, Score, Suite

SEED = Generate(seed=0)


def suite(**more: object) -> Suite:
    return Suite(name="toy", about="", item=lambda row, ask: Item("", (), ""), score=lambda i, a: Score(0), **more)  # type: ignore[arg-type]


def test_a_folder_with_its_file_and_checksum(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    file = tmp_path / "deep" / "rows.jsonl"
    file.write_text('{"a": 1}\n{"a": 2}\n')
    data = load(suite(files=("none.jsonl", "rows.jsonl")), str(tmp_path), SEED)
    assert [row["a"] for row in data.rows] == [1, 2]
    assert data.sha256 == {"rows.jsonl": hashlib.sha256(file.read_bytes()).hexdigest()}
    with pytest.raises(ValueError, match=r"no other\.jsonl in this folder"):
        load(suite(files=("other.jsonl",)), str(tmp_path), SEED)


def test_files_of_one_name_have_a_checksum_each(tmp_path: Path) -> None:
    (tmp_path / "answers").mkdir()
    for file in (tmp_path / "rows.jsonl", tmp_path / "answers" / "rows.jsonl"):
        file.write_text(json.dumps({"in": file.parent.name}))
    data = load(suite(files=("rows.jsonl",)), str(tmp_path), SEED)
    assert set(data.sha256) == {"rows.jsonl", "answers/rows.jsonl"}
    assert len({*data.sha256.values()}) == 2


def test_dates_of_rows(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps({"on": f"2025-0{month}-01"}) + "\n" for month in range(1, 6)))
    toy = suite(date=lambda row: row["on"])
    for since, until in (("2025-02-01", "2025-04-01"), ("20250201", "20250401"), ("2025-W05-6", "2025-04-30")):
        months = [row["on"][6] for row in load(toy, str(file), SEED, since=since, until=until).rows]
        assert months == ["2", "3", "4"], "every form of a date that is read means that date"
    with pytest.raises(ValueError, match="--until must be a date as 2026-01-31, got '2025-13-01'"):
        load(toy, str(file), SEED, until="2025-13-01")


def test_forms_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('q,n\n"two\nlines",1\n')
    (tmp_path / "b.json").write_text('[{"q": "x"}]')
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"q": "y"}\n'))
    (tmp_path / "d.txt").write_text("x")
    (tmp_path / "e.json").write_text("[1]")
    (tmp_path / "f.jsonl").write_text('{"q": 1}\n\n{"q": ')
    (tmp_path / "j.jsonl").write_text("[" * 200_000)
    (tmp_path / "h.csv.gz").write_bytes(gzip.compress(b"q,n")[:-3])
    (tmp_path / "i.csv.gz").write_bytes(b"q,n")
    assert read_rows(tmp_path / "a.csv") == [{"q": "two\nlines", "n": "1"}]
    assert read_rows(tmp_path / "b.json") == [{"q": "x"}]
    assert read_rows(tmp_path / "c.jsonl.gz") == [{"q": "y"}]
    for name, reason in (
        ("d.txt", "is needed"),
        ("e.json", "JSON object"),
        ("f.jsonl", r"f\.jsonl, line 3 is no JSON"),
        ("j.jsonl", r"j\.jsonl is no JSON"),
        ("g.csv", "no such"),
        ("h.csv.gz", "no whole gzip"),
        ("i.csv.gz", "no whole gzip"),
    ):
        with pytest.raises(ValueError, match=reason):
            read_rows(tmp_path / name)


def test_generated_rows_and_their_checksum() -> None:
    def generate(ask: Generate) -> list[Row]:
        return [{"n": ask.seed + i, "small": ask.small} for i in range(ask.count or 3)]

    toy = suite(generate=generate)
    data = load(toy, "", Generate(seed=5, count=2))
    assert [row["n"] for row in data.rows] == [5, 6]
    assert data.sha256 == load(toy, "generated", Generate(seed=5, count=2)).sha256
    assert data.sha256 != load(toy, "", Generate(seed=6, count=2)).sha256
    assert load(toy, "stand-in", SEED).rows[0]["small"]


def test_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = suite(package=PackageData("pip", "pip", ("_vendor/vendor.txt",)))
    with pytest.raises(ValueError, match="is needed"):
        load(toy, "", SEED)  # the file is found in the installed package, and is no data
    absent = suite(package=PackageData("toy-data", "toy_data_of_nobody", ("rows.jsonl",)))
    with pytest.raises(ValueError, match="pip install toy-data"):
        load(absent, "package", SEED)


def test_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    folder = tmp_path / "snapshots" / "abc123"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "test-0.jsonl").write_text('{"a": 1}\n')
    (folder / "data" / "train-0.jsonl").write_text('{"a": 2}\n')
    asked: dict[str, object] = {}

    def download(repo: str, **options: object) -> str:
        asked.update(options, repo=repo)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    data = load(suite(hub=HubData("a/b", "v1", ("data/test-*.jsonl",))), "hub", SEED)
    assert [row["a"] for row in data.rows] == [1]
    assert data.revision == "abc123"
    assert (asked["repo"], asked["revision"], asked["repo_type"]) == ("a/b", "v1", "dataset")
    with pytest.raises(ValueError, match=r"has no none\.csv at v1"):
        load(suite(hub=HubData("a/b", "v1", ("none.csv",))), "hub", SEED)

    def refuse(repo: str, **options: object) -> str:
        raise OSError("no network\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ValueError, match=r"a/b cannot be had: no network$"):
        load(suite(hub=HubData("a/b", "v1", ("x",))), "hub", SEED)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match=r"hub.*downloads a/b.*rows\.csv$"):
        load(suite(files=("rows.csv",), hub=HubData("a/b", "main", ("x",), gated=True)), "", SEED)
    with pytest.raises(ValueError, match="on no hub"):
        load(suite(), "hub", SEED)
    with pytest.raises(ValueError, match=r"gsm8k has no generator; .*; stand-in \(a few items, to try\)$"):
        load(suite_named("gsm8k"), "generated", SEED)
    with pytest.raises(ValueError, match=r"has no stand-in; a file or folder with its rows$"):
        load(suite(), "stand-in", SEED)
    with pytest.raises(ValueError, match="must be a file, a folder"):
        load(suite(), "no/such/place", SEED)


def test_rows_that_belong_to_the_suite(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps({"n": n}) + "\n" for n in range(4)))
    assert len(load(suite(keep=lambda row: row["n"] > 1), str(file), SEED).rows) == 2
    with pytest.raises(ValueError, match="no row"):
        load(suite(keep=lambda row: False), str(file), SEED)


def test_a_limit_draws_from_all_rows() -> None:
    rows: list[Row] = [{"n": n} for n in range(1000)]
    places = chosen(rows, 20, seed=1)
    assert places == sorted(set(places))
    assert len(places) == 20
    assert places[-1] > 500
    assert places == chosen(rows, 20, seed=1) != chosen(rows, 20, seed=2)
    assert chosen(rows, None, 0) == list(range(1000))


def test_suites_by_name(tmp_path: Path) -> None:
    assert "gsm8k" in suite_names()
    for name in suite_names():
        assert suite_named(name).name == name
    with pytest.raises(ValueError, match="gsm8k"):
        suite_named("nothing")
    with pytest.raises(ValueError, match=r"one of .*, mrcr, nano, needle, .*got 'nothing'"):
        run_eval("http://127.0.0.1:9", suite="nothing")
    assert suite_named("short", {"short": "dsv4.evals.suites.gsm8k"}).name == "gsm8k"
    with pytest.raises(ValueError, match="no such file"):
        suite_named("nothing.py")
    with pytest.raises(ValueError, match="No module"):
        suite_named("no_such_package.suite")
    mine = tmp_path / "mine.py"
    mine.write_text("from dsv4.evals.suites.gsm8k import SUITE\n")
    assert suite_named(str(mine)).name == "gsm8k"
    mine.write_text("x = 1\n")
    with pytest.raises(ValueError, match="must have a SUITE"):
        suite_named(str(mine))
