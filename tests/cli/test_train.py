"""`dsv4 train` as a user meets it: from a recipe to a folder that answers."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import dsv4
from dsv4.checkpoint.check import check_folder
from dsv4.cli.__main__ import make_app
from dsv4.cli.folders import default_model_folder
from dsv4.cli.train_start import told_in_sentences
from dsv4.training.logbook import read_log
from dsv4.training.recovery import Diverged
from dsv4.training.run_lock import RunLock
from tests.training.runs import raw_recipe

TEXT = "".join(f"line {i} counts up to line {i + 1}, and so on.\n\n" for i in range(400))


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def write_recipe(folder: Path, **changes: object) -> Path:
    (folder / "text.txt").write_text(TEXT)
    source = {"name": "t", "kind": "text", "path": str(folder / "text.txt"), "characters": 400}
    data = {"vocabulary": 300, "micro": 256, "pool": 4, "fim": 0.2, "sources": [source]}
    raw = raw_recipe(**{"data": data, **changes})
    raw = {name: value for name, value in raw.items() if value is not None}  # TOML has no word for it
    file = folder / "recipe.toml"
    file.write_text("\n".join(f"{k} = {toml(v)}" for k, v in raw.items()))
    return file


def dsv4_train(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "dsv4.cli", "train", *map(str, arguments), "--live", "-1", "--threads", "1"]


def test_a_stopped_run_goes_on_and_ends_as_a_model(tmp_path: Path) -> None:
    recipe, place = write_recipe(tmp_path), tmp_path / "run"
    process = subprocess.Popen(dsv4_train(recipe, "--folder", place), stderr=subprocess.PIPE, text=True)
    log = place / "log.jsonl"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and (not log.exists() or log.read_text().count("\n") < 2):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    told = process.communicate()[1]
    assert process.returncode == 130, told
    assert "saved; the same command resumes the run" in told
    done = subprocess.run(dsv4_train(recipe, "--folder", place), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    steps = [line["step"] for line in read_log(log)]
    assert steps == list(range(len(steps)))
    assert "next-token loss" in (place / "report.html").read_text()
    assert not check_folder(place / "model").problems
    assert dsv4.load(place / "model", mode="release").generate("line 1", max_tokens=4, temperature=0)


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    for change, message in (
        ("lr.peak=0", "lr.peak must be positive, got 0"),
        ("what=1", "what is not a field; known fields: "),
    ):
        done = subprocess.run(dsv4_train(recipe, "--set", change), capture_output=True, text=True)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_the_table_of_optimisers(tmp_path: Path) -> None:
    done = subprocess.run(dsv4_train(write_recipe(tmp_path), "--table"), capture_output=True, text=True)
    assert "layers.*.ffn.experts.*.w1.weight" in done.stdout
    assert not (tmp_path / "runs").exists()


def run_here(*arguments: str | Path) -> None:
    """`dsv4 train` in this process."""
    app = make_app()
    app(["train", *map(str, arguments)], exit_on_error=False, print_error=False, result_action="return_value")


@pytest.fixture(scope="module")
def occupied() -> Iterator[int]:
    """A port that is taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], r"--threads must be in \[1, 4096\], got 0"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--live", "70000"], r"--live must be a port in \[0, 65535\], or -1"),
        (["--track", "trackio"], "--track trackio needs its package: pip install trackio"),
        (["--set", "stages.7.length=5"], "stages has entries 0 to 2, got '7'"),
        (["--set", "model.hidden_size=abc"], "model.hidden_size must be an integer, got 'abc'"),
        (["--set", "model.index_head_dim=16"], "model: index_head_dim must be a multiple of 32"),
        (["--set", "data.vocabulary=20"], "data.vocabulary: vocab_size must be at least"),
        (["--set", "data.sources.0.path=/no/where"], "source t: no files at /no/where"),
        (["--set", "scale.fsdp=2"], "needs 2 processes, but 1 were started"),
    ],
)
def test_what_cannot_end_well_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr("dsv4.training.logbook.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        run_here(write_recipe(tmp_path), "--folder", tmp_path / "run", *arguments)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_port_in_use_is_told_at_once(tmp_path: Path, occupied: int) -> None:
    with pytest.raises(
        ValueError, match=f"--live {occupied}: the port is in use; 0 takes a free one, -1 shows no page"
    ):
        run_here(write_recipe(tmp_path), "--folder", tmp_path / "run", "--live", occupied)


def test_tokenizers_that_export_cannot_use_are_told_at_once(tmp_path: Path) -> None:
    def with_tokenizer(path: Path) -> None:
        source = {"name": "t", "kind": "text", "path": str(tmp_path / "text.txt")}
        recipe = write_recipe(tmp_path, data={"tokenizer": str(path), "sources": [source]})
        run_here(recipe, "--folder", tmp_path / "run", "--live", -1)

    with pytest.raises(
        ValueError, match=r"data\.tokenizer: .*nowhere is neither a tokenizer\.json nor a folder with one"
    ):
        with_tokenizer(tmp_path / "nowhere")
    definition = json.loads((default_model_folder() / "tokenizer.json").read_text())
    definition["added_tokens"][-1]["id"] = 900_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(ValueError, match=r"token ids go up to 900000, but there are only"):
        with_tokenizer(tmp_path)


@pytest.mark.parametrize("named", ["folder", "file"])
def test_a_tokenizer_without_its_config_trains_and_exports(tmp_path: Path, named: str) -> None:
    (tmp_path / "tok").mkdir()
    shutil.copy(default_model_folder() / "tokenizer.json", tmp_path / "tok")
    path = tmp_path / "tok" if named == "folder" else tmp_path / "tok" / "tokenizer.json"
    source = {"name": "t", "kind": "text", "path": str(tmp_path / "text.txt"), "characters": 400}
    data = {"tokenizer": str(path), "pool": 4, "micro": 256, "sources": [source]}
    short = {"stages": [{"tokens": 300, "length": 96}], "qat_from": None}
    run_here(write_recipe(tmp_path, data=data, **short), "--folder", tmp_path / "run", "--live", -1)
    assert dsv4.load(tmp_path / "run" / "model", context_length=64).generate("line 1", max_tokens=2, temperature=0)


def test_folders_of_others_stay_as_they_are(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "tokenizer.json").write_text("mine")
    with pytest.raises(ValueError, match=r"--folder .*mine: holds tokenizer\.json, but no run"):
        run_here(recipe, "--folder", tmp_path / "mine")
    with pytest.raises(ValueError, match=r"--folder .*recipe\.toml: is a file"):
        run_here(recipe, "--folder", recipe)
    assert [f.name for f in (tmp_path / "mine").iterdir()] == ["tokenizer.json"]


def test_a_second_run_in_a_folder_is_refused_and_the_log_stays(tmp_path: Path) -> None:
    recipe, place = write_recipe(tmp_path), tmp_path / "run"
    run_here(recipe, "--folder", place, "--live", -1, "--steps", 2)
    before = (place / "log.jsonl").read_bytes()
    assert before.count(b"\n") == 2
    assert not (place / "model").exists()
    with RunLock(place), pytest.raises(ValueError, match=f"is in use by process {os.getpid()} on "):
        run_here(recipe, "--folder", place, "--live", -1)
    assert (place / "log.jsonl").read_bytes() == before
    run_here(recipe, "--folder", place, "--live", -1, "--steps", 1, "--export", "none")
    assert [line["step"] for line in read_log(place / "log.jsonl")] == [0, 1, 2]


def test_a_dry_run_tries_every_stage_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    run_here(recipe, "--folder", tmp_path / "runs" / "new", "--steps", 1, "--dry-run")
    told = capsys.readouterr().out
    for part in (
        "stage 0: dense, 64 long:",
        "stage 1: warmup, 96 long:",
        "stage 2: sparse, 96 long:",
        "96 long, quantised:",
    ):
        assert part in told
    assert "after a spike: routed ahead: a step of" in told
    assert "in the layout release, loaded in mode release; it answers" in told
    assert "the whole run: about" in told
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_finds_what_only_happens_later(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    (tmp_path / "text.txt").write_bytes(TEXT.encode() + b"caf\xe9")
    with pytest.raises(ValueError, match=r"text\.txt, line 801, column 4: 0xe9 is not valid UTF-8"):
        run_here(recipe, "--folder", tmp_path / "run", "--dry-run")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["recipe.toml", "text.txt"]


def test_what_ends_a_run_is_told_in_sentences() -> None:
    cases = (
        (Diverged("step 7: loss nan"), "step 7: loss nan"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a/state.pt"),
            r"a/state\.pt: No space left on device\. What was",
        ),
        (MemoryError(), r"not enough memory: lower data\.micro"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes\nmore"), "can't allocate memory: 9 bytes"),
    )
    for error, message in cases:
        with pytest.raises(ValueError, match=message), told_in_sentences():
            raise error
    with pytest.raises(RuntimeError, match="a mistake of ours"), told_in_sentences():
        raise RuntimeError("a mistake of ours")
