"""`dsv4 train` as a user meets it: from a recipe to a folder that answers."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import dsv4
from dsv4.checkpoint.check import check_folder
from dsv4.training.logbook import read_log
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
    raw = raw_recipe(data={"vocabulary": 300, "micro": 256, "pool": 4, "fim": 0.2, "sources": [source]}, **changes)
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
    assert "saved; the same command goes on" in told
    done = subprocess.run(dsv4_train(recipe, "--folder", place), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    steps = [line["step"] for line in read_log(log)]
    assert steps == list(range(len(steps)))
    assert "next-token loss" in (place / "report.html").read_text()
    assert not check_folder(place / "model").problems
    assert dsv4.load(place / "model", mode="release").generate("line 1", max_tokens=4, temperature=0)


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    for change, message in (("lr.peak=0", "lr.peak must be positive, got 0"), ("what=1", "what: Unexpected")):
        done = subprocess.run(dsv4_train(recipe, "--set", change), capture_output=True, text=True)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_the_table_of_optimisers(tmp_path: Path) -> None:
    done = subprocess.run(dsv4_train(write_recipe(tmp_path), "--table"), capture_output=True, text=True)
    assert "layers.*.ffn.experts.*.w1.weight" in done.stdout
    assert not (tmp_path / "runs").exists()
