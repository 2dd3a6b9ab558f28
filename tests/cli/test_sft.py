"""`dsv4 sft` as a user meets it: from a file of conversations and a folder to a folder that answers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import dsv4
from dsv4.checkpoint import BASE, BF16, FP32, RELEASE, CheckpointReader, check_folder, save_checkpoint
from dsv4.checkpoint.names import Layout
from dsv4.cli.__main__ import make_app
from dsv4.encoding import Tokenizer, train_bpe
from dsv4.model.init import init_weights
from dsv4.model.transformer import Transformer
from dsv4.training.logbook import read_log
from dsv4.training.states import find_state, load_state
from tests.training.runs import recipe

WORDS = ("red", "blue", "green", "white")


def talk(word: str, n: int) -> dict[str, Any]:
    asked = {"role": "user", "content": f"say {word} {n}"}
    return {"messages": [asked, {"role": "assistant", "content": f"{word} is {word}"}]}


def write_talks(file: Path, count: int = 24) -> Path:
    file.write_text("".join(json.dumps(talk(WORDS[n % 4], n)) + "\n" for n in range(count)))
    return file


def write_base(folder: Path, layout: Layout = FP32, *, dialect: str = "v4", seed: int = 5) -> Path:
    """A new model in a layout, with a tokenizer of its own."""
    files = folder.parent / "tokenizer"
    codec = train_bpe([json.dumps(talk(word, 1)) for word in WORDS], 330, files)
    config = (
        recipe()
        .config(codec.vocab_size)
        .with_changes(quantized=layout.linears == "fp8", expert_dtype="fp4" if layout is RELEASE else None)
    )
    model = init_weights(Transformer(config), seed)
    extra = {name: (files / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    extra["generation_config.json"] = json.dumps({"temperature": 0.25, "dialect": dialect}).encode()
    extra["README.md"] = b"the card of the base"
    save_checkpoint(folder, config, model.state_dict(), layout, extra_files=extra)
    return folder


def run(*arguments: str | Path) -> None:
    quiet = ("--live", "-1", "--threads", "1")
    make_app()(["sft", *map(str, arguments), *quiet], exit_on_error=False, result_action="return_value")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


@pytest.mark.parametrize("layout", [FP32, BF16, BASE, RELEASE], ids=lambda layout: layout.name)
def test_a_folder_and_a_file_are_enough(tmp_path: Path, layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    base, data = write_base(tmp_path / "base", layout), write_talks(tmp_path / "talks.jsonl")
    held_out = write_talks(tmp_path / "held-out.jsonl", 8)
    run("--init", base, "--data", data, "--held-out", held_out, "--folder", tmp_path / "run", "--epochs", "3")
    made = tmp_path / "run" / "model"
    report = check_folder(made, deep=True)
    assert report.ok, report.problems
    assert report.layout == layout.name
    # the base's files come along, its card does not
    assert (made / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert json.loads((made / "generation_config.json").read_text())["temperature"] == 0.25
    assert not (made / "README.md").exists()
    lines = list(read_log(tmp_path / "run" / "log.jsonl"))
    assert lines[-1]["next"] < lines[0]["next"]
    assert {line["qat"] for line in lines} == {layout is RELEASE}
    told = capsys.readouterr().err
    assert "24 examples" in told
    before, after = (float(part.split("loss ")[1].split(",")[0]) for part in told.split("held out, ")[1:])
    assert after < before
    model = dsv4.load(made, context_length=64, sequences=1)
    assert model.chat([{"role": "user", "content": "say red 1"}], thinking=False, max_tokens=4).completion is not None


def test_files_of_one_name_are_two_sources(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    files = [write_talks(tmp_path / name / "train.jsonl", count) for name, count in (("a", 8), ("b", 4))]
    common = ("--init", base, "--folder", tmp_path / "run", "--epochs", "1", "--export", "none")
    run(*common, "--data", files[0], "--data", files[1])
    told = capsys.readouterr().err
    assert "train: 8 examples" in told
    assert "train-2: 4 examples" in told
    with pytest.raises(ValueError, match=r"--data: .*train\.jsonl is there twice"):
        run(*common, "--data", files[0], "--data", files[0])


@pytest.mark.parametrize(("layout", "kept"), [(BF16, " --dtype bf16"), (RELEASE, "")], ids=lambda value: str(value)[:9])
def test_the_command_that_merges_an_adapter_keeps_the_layout(
    tmp_path: Path, layout: Layout, kept: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`dsv4 convert` quantises unless it is told otherwise, and a name with a space is one word of the command."""
    base, data = write_base(tmp_path / "my base", layout), write_talks(tmp_path / "talks.jsonl", 4)
    place = tmp_path / "run"
    run("--init", base, "--data", data, "--folder", place, "--epochs", "1", "--lora", "2")
    adapter = place / "adapter"
    merge = f"merge it: dsv4 convert '{base}' {place / 'model'} --adapter {adapter}{kept}"
    assert merge in capsys.readouterr().err.splitlines()


def test_only_answers_are_learned(tmp_path: Path, base: Path) -> None:
    """What the user says has no part in the loss: a user who says something else gives the same first loss."""
    first = []
    for name, ending in (("a", ""), ("b", " again and again")):
        talks = [talk(word, n) for n, word in enumerate(WORDS)]
        for one in talks:
            one["messages"].append({"role": "user", "content": "and now" + ending})
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(one) + "\n" for one in talks))
        run("--init", base, "--data", data, "--folder", tmp_path / name, "--steps", "1", "--length", "64")
        first.append(next(iter(read_log(tmp_path / name / "log.jsonl")))["next"])
    assert first[0] == first[1]


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, base: Path) -> None:
    data = write_talks(tmp_path / "talks.jsonl")
    common = ("--init", base, "--data", data, "--epochs", "2", "--export", "none")
    run(*common, "--folder", tmp_path / "whole")
    run(*common, "--folder", tmp_path / "parts", "--steps", "3")
    run(*common, "--folder", tmp_path / "parts")
    states = [load_state(find_state(tmp_path / name) or Path()) for name in ("whole", "parts")]
    assert states[0]["step"] == states[1]["step"] > 3
    for name, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][name]), name


def test_other_weights_under_a_run_are_refused(tmp_path: Path, base: Path) -> None:
    data = write_talks(tmp_path / "talks.jsonl")
    common = ("--data", data, "--folder", tmp_path / "run", "--export", "none")
    run("--init", base, *common, "--steps", "1")
    moved = base.rename(tmp_path / "moved")
    run("--init", moved, *common, "--steps", "1")  # the same weights elsewhere
    other = write_base(tmp_path / "other", seed=6)
    with pytest.raises(ValueError, match=r"was started from other weights than .*other has"):
        run("--init", other, *common)


def test_a_finished_run_is_a_base(tmp_path: Path, base: Path) -> None:
    data = write_talks(tmp_path / "talks.jsonl")
    run("--init", base, "--data", data, "--folder", tmp_path / "one", "--epochs", "1")
    run("--init", tmp_path / "one", "--data", data, "--folder", tmp_path / "two", "--epochs", "1")
    assert check_folder(tmp_path / "two" / "model").ok
    (tmp_path / "one" / "model").rename(tmp_path / "gone")
    with pytest.raises(ValueError, match="holds a run that is not finished"):
        run("--init", tmp_path / "one", "--data", data, "--folder", tmp_path / "three")


def test_an_unfinished_run_of_ranks_is_no_base(tmp_path: Path) -> None:
    state = tmp_path / "run" / "state-3"
    state.mkdir(parents=True)
    (state / "header.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a run that is not finished"):
        run("--init", tmp_path / "run", "--data", write_talks(tmp_path / "t.jsonl"), "--folder", tmp_path / "two")


def test_a_recipe_may_change_the_window_and_no_size(tmp_path: Path, base: Path) -> None:
    data = write_talks(tmp_path / "talks.jsonl")
    common = ("--init", base, "--data", data, "--folder", tmp_path / "run", "--epochs", "1")
    run("--set", "model.sliding_window=4", *common)
    made = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert made["sliding_window"] == 4 != json.loads((base / "config.json").read_text())["sliding_window"]
    with pytest.raises(ValueError, match=r"model.head_dim: comes from the folder"):
        run("--set", "model.head_dim=64", *common)
    with pytest.raises(ValueError, match="sliding_window"):
        run("--set", "model.sliding_window=0", *common)
    with pytest.raises(ValueError, match="model: with LoRA"):
        run("--set", "model.sliding_window=4", *common, "--lora", "2")


def test_the_dialect_of_the_base_is_kept(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", dialect="v4-0731")
    run("--init", base, "--data", write_talks(tmp_path / "t.jsonl"), "--folder", tmp_path / "run", "--epochs", "1")
    assert Tokenizer.load(tmp_path / "run" / "model").dialect.name == "v4-0731"


def test_a_recipe_says_what_flags_do_not(tmp_path: Path, base: Path) -> None:
    data = write_talks(tmp_path / "talks.jsonl")
    file = tmp_path / "mine.toml"
    file.write_text(
        f'name = "mine"\ninit = "{base}"\nqat_from = 200\n[optimizer]\nkind = "muon"\n'
        f'[[data.sources]]\nname = "t"\nkind = "messages"\npath = "{data}"\n'
        "[[stages]]\ntokens = 400\nlength = 64\n"
    )
    run(file, "--folder", tmp_path / "run", "--set", "lr={peak=1e-3,final=0,warmup=0,decay_from=0,decay_to=400}")
    lines = list(read_log(tmp_path / "run" / "log.jsonl"))
    assert [line["qat"] for line in lines] == [line["tokens"] >= 200 for line in lines]
    assert lines[0]["lr"] == 1e-3
    with pytest.raises(ValueError, match="--epochs: the recipe has stages"):
        run(file, "--folder", tmp_path / "other", "--epochs", "2")


def refused(tmp_path: Path, message: str, *arguments: str | Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(*arguments)
    assert not (tmp_path / "run" / "model").exists()


def test_mistakes_are_named_before_anything_is_trained(tmp_path: Path, base: Path) -> None:
    data, place = write_talks(tmp_path / "talks.jsonl"), ("--folder", tmp_path / "run")
    refused(tmp_path, "--init: which model", "--data", data, *place)
    refused(tmp_path, "--data: no conversations", "--init", base, *place)
    refused(tmp_path, "no such folder", "--init", tmp_path / "nothing", "--data", data, *place)
    refused(tmp_path, "there is no such file", "--init", base, "--data", tmp_path / "no.jsonl", *place)
    refused(tmp_path, "the run would write into the model", "--init", base, "--data", data, "--folder", base)
    refused(tmp_path, "the run would write into the model", "--init", base, "--data", data, "--folder", base / "run")
    refused(tmp_path, "conversations are given as --data", data, "--init", base, *place)
    refused(tmp_path, "--lr must be positive", "--init", base, "--data", data, "--lr", "-1", *place)
    refused(tmp_path, "--epochs must be positive and finite", "--init", base, "--data", data, "--epochs", "inf", *place)
    refused(tmp_path, "lora.rank must be at most 32", "--init", base, "--data", data, "--lora", "1000", *place)
    refused(tmp_path, "stages: expected a list of tables", "--init", base, "--data", data, "--set", "stages=[]", *place)
    doubled = tmp_path / "doubled.jsonl"
    doubled.write_text('{"messages": [{"role": "user", "content": "a", "content": "b"}]}')
    refused(tmp_path, "doubled.jsonl, line 1: .*the key 'content' is there twice", "--init", base, "--data", doubled)
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "plain"}\n')
    refused(tmp_path, r'text.jsonl, line 1: messages: missing.* kind = "jsonl"', "--init", base, "--data", text, *place)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    refused(tmp_path, "no conversation found", "--init", base, "--data", empty, *place)
    silent = tmp_path / "silent.jsonl"
    silent.write_text(json.dumps({"messages": [{"role": "user", "content": "a"}]}) + "\n")
    refused(tmp_path, "silent.jsonl, line 1: .* no message has the role assistant", "--init", base, "--data", silent)


def test_another_tokenizer_than_the_models_is_refused(tmp_path: Path, base: Path) -> None:
    data, place = write_talks(tmp_path / "talks.jsonl"), ("--folder", tmp_path / "run")
    train_bpe(["entirely different words here"], 330, tmp_path / "other")
    other = ("--set", f"data={{tokenizer='{tmp_path / 'other'}'}}")
    refused(tmp_path, "has other tokens than the model", "--init", base, "--data", data, *place, *other)
    # a tokenizer with more tokens than the model has rows
    train_bpe([f"word{i} other{i * 7}" for i in range(400)], 600, tmp_path / "wide")
    (base / "tokenizer.json").write_bytes((tmp_path / "wide" / "tokenizer.json").read_bytes())
    refused(tmp_path, "tokenizer.json", "--init", base, "--data", data, *place)


def test_weights_are_read_as_the_folder_holds_them(tmp_path: Path) -> None:
    """Without a step, the export of a released folder holds the same values."""
    from dsv4.model.layers import FP32 as NUMERICS
    from dsv4.posttraining.base_model import BaseModel

    folder = write_base(tmp_path / "base", RELEASE)
    model, reader = BaseModel.open(folder).trainable(NUMERICS), CheckpointReader(folder)
    for name, value in model.state_dict().items():
        if not name.endswith("tid2eid"):
            assert torch.equal(value, reader.dequantized(name)), name
        assert value.untyped_storage().nbytes() > 0


def test_the_command_line(tmp_path: Path, base: Path) -> None:
    command = [sys.executable, "-m", "dsv4.cli", "sft", "--init", str(base), "--data", str(tmp_path / "no.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("dsv4: source no: no files at")
    assert "Traceback" not in done.stderr
