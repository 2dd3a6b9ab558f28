"""Broken downloads and foreign folders: one sentence each that says what is there, from check as from load."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dsv4.api.tokenizer import load_tokenizer
from dsv4.checkpoint import check_folder
from dsv4.checkpoint.inventory import INDEX_NAME
from dsv4.checkpoint.tokenizer_file import FILE_NAME
from dsv4.cli.folders import default_model_folder
from tests.checkpoint.folders import refused

SHARD = "model-00002-of-00007.safetensors"
DOWNLOADS: dict[str, tuple[bytes, str]] = {
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12345\n", "Git LFS pointer"),
    "HTML": (b"<!DOCTYPE html><html><body>403 Forbidden</body></html>", "an HTML page"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an HTML page"),
    "GGUF": (b"GGUF\3\0\0\0" + b"\1" * 64, "a GGUF file"),
    "pickle": (b"PK\3\4" + b"\1" * 64, "pickle"),
    "gzip": (b"\x1f\x8b\x08\0" + b"\1" * 64, "compressed with gzip"),
    "zeros": (b"\0" * 4096, "begins with zeros"),
    "empty": (b"", "the file is empty"),
    "short": (b"\x10\0\0", "truncated"),
    "huge header": (struct.pack("<Q", 2**62), "header of"),
    "deep header": (struct.pack("<Q", 100_000) + b"[" * 100_000, "nested too deeply"),
}  # fmt: skip


@pytest.mark.parametrize("name", DOWNLOADS)
def test_one_bad_shard_is_one_problem_that_says_what_it_is(save, name: str) -> None:
    folder = save("release")
    data, text = DOWNLOADS[name]
    (folder / SHARD).write_bytes(data)
    report = check_folder(folder)
    assert len(report.problems) == 1
    assert report.layout == "release"
    assert text in refused(folder)
    assert str(folder / SHARD) in refused(folder)


@pytest.mark.parametrize("shard", range(1, 8))
def test_one_cut_shard_is_one_problem(save, shard: int) -> None:
    folder = save("release")
    file = folder / f"model-0000{shard}-of-00007.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    report = check_folder(folder)
    assert (len(report.problems), report.layout) == (1, "release")
    assert "truncated" in report.problems[0]


def _pipe(file: Path) -> None:
    os.mkfifo(file)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (_pipe, "a named pipe, not a regular file"),
        (Path.mkdir, "a folder, not a regular file"),
        (lambda file: file.symlink_to("/dev/zero"), "a device, not a regular file"),
        (lambda file: file.symlink_to(file), "symbolic links"),
        (lambda file: file.symlink_to("nowhere"), "missing|No such file"),
    ],
)
@pytest.mark.parametrize("name", [SHARD, INDEX_NAME, "config.json", "generation_config.json", "tokenizer.json"])
def test_what_is_no_file_is_named_and_never_waited_for(save, make: Callable[[Path], Any], text: str, name: str) -> None:
    folder = save("release")
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    report = check_folder(folder)
    broken_link = (folder / name).is_symlink() and not (folder / name).exists()
    if broken_link and name in ("config.json", "generation_config.json"):
        return  # as if it were not there
    assert not report.ok
    assert any(name in problem for problem in report.problems)
    if not broken_link:
        assert any(part in problem for problem in report.problems for part in text.split("|"))


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", 5, "", "a\0.safetensors"]
)
def test_an_index_that_points_elsewhere(save, shard: Any) -> None:
    folder = save("release")
    index = json.loads((folder / INDEX_NAME).read_text())
    index["weight_map"]["norm.weight"] = shard
    (folder / INDEX_NAME).write_text(json.dumps(index))
    assert "'norm.weight' must lie in a .safetensors file of this folder" in refused(folder)


def test_a_header_of_a_million_tensors_is_refused_at_once(save) -> None:
    entry = b'":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"'
    header = (
        b'{"' + entry.join(b"%d" % i for i in range(500_000)) + b'":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    )
    folder = save("release")
    (folder / SHARD).write_bytes(struct.pack("<Q", len(header)) + header)
    assert "more than 400,000 tensors" in refused(folder)


FOREIGN = {
    "model.gguf": "a GGUF file: `dsv4 convert FILE FOLDER` makes",
    "pytorch_model.bin": "pickle files can run code",
    "model.safetensors.incomplete": "not finished",
    "model.tar.gz": "unpack it first",
    "adapter_model.safetensors": "adapter",
    "adapters.safetensors": "adapter",
    "README.md": "no safetensors files",
}


@pytest.mark.parametrize(
    "text", [b"Entry not found", b'{"error":"Invalid username or password."}', b"# xet version 0\nfilesize = 123\n"]
)
def test_a_servers_message_in_place_of_a_shard_is_shown(save, text: bytes) -> None:
    folder = save("release")
    (folder / SHARD).write_bytes(text)
    told = refused(folder)
    assert "text in place of the file (a download that failed?): " in told
    assert text.splitlines()[0].decode() in told


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("model.gguf", "a GGUF file: `dsv4 convert FILE FOLDER` makes a folder of it that loads; a model is a folder"),
        ("model.safetensors", "not a folder: the model is "),
        ("config.json", "not a folder: the model is "),
        ("notes.txt", "not a folder"),
    ],
)
def test_a_file_in_place_of_the_folder(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(b"GGUF\3\0\0\0" if name.endswith("gguf") else b"{}")
    assert text in refused(tmp_path / name)


@pytest.mark.parametrize("below", ["DeepSeek-V4", "snapshots/0123abc"])
def test_a_folder_above_the_model_names_the_one_below(save, tmp_path: Path, below: str) -> None:
    place = tmp_path / "above" / below
    shutil.copytree(save("release"), place)
    (tmp_path / "above" / "state.pt").write_bytes(b"\x80\x02")  # of a training run
    assert f"no safetensors files; {place} has some" in refused(tmp_path / "above")


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize("name", FOREIGN)
def test_folders_without_a_model_say_what_they_hold(save, tmp_path: Path, name: str, config: bool) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / name).write_bytes(b"GGUF")
    if config:
        shutil.copy(save("release") / "config.json", folder)
    assert FOREIGN[name] in refused(folder)


def test_an_adapter_alone_names_its_kind_and_base(save) -> None:
    folder = save("release")
    for file in folder.glob("model*"):
        file.unlink()
    save_file({"x.lora_A.weight": torch.ones(1)}, folder / "adapter_model.safetensors")
    raw = {"peft_type": "LORA", "base_model_name_or_path": "deepseek-ai/DeepSeek-V4-Flash"}
    (folder / "adapter_config.json").write_text(json.dumps(raw))
    text = refused(folder)
    assert "a LoRA adapter for deepseek-ai/DeepSeek-V4-Flash and no model" in text


TOKENS = {"a": 0, "b": 1}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"model": {"vocab": {"a": 0, "b": 96}}}, None),
        ({"model": {"vocab": TOKENS}}, "has 2 tokens, vocab_size is 96: the 94 ids above are padding"),
        ({"model": {"vocab": {"a": 96}}}, "has 97 tokens, more than vocab_size 96"),
        ({"model": {"vocab": TOKENS}, "added_tokens": [{"id": 200}]}, "has 201 tokens, more than vocab_size 96"),
        ({"model": {"vocab": {}}}, "model.vocab must hold tokens"),
        ({"model": {"vocab": {"a": "0"}}}, "token ids must be integers"),
        ({"model": []}, "model.vocab must be an object"),
        ({"model": {"vocab": TOKENS}, "added_tokens": "x"}, "added_tokens must be a list"),
        ("[" * 100_000, "nested too deeply"),
        ("version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_the_tokenizer_file_is_told_at_load(save, content: Any, text: str | None) -> None:
    folder = save("release")
    (folder / "tokenizer.json").write_text(content if isinstance(content, str) else json.dumps(content))
    if text is None:
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 95}}}))
        assert check_folder(folder).notes == ()
        return
    report = check_folder(folder)
    assert text in (report.notes or report.problems)[0]
    assert report.ok == ("padding" in text)
    with (
        pytest.warns(UserWarning, match="padding") if report.ok else nullcontext(),
        pytest.raises(ValueError, match=FILE_NAME) as caught,
    ):
        load_tokenizer(folder, 96)  # none of these has the control tokens
    assert report.ok or text in str(caught.value)


def _nano_tokenizer(**changes: Any) -> str:
    raw = json.loads((default_model_folder() / "tokenizer.json").read_text())
    return json.dumps({**raw, **changes})


def test_a_tokenizer_that_crashes_its_library_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    replaces_nothing = {"type": "Replace", "pattern": {"String": ""}, "content": "x"}
    (tmp_path / "tokenizer.json").write_text(_nano_tokenizer(normalizer=replaces_nothing))
    with pytest.raises(ValueError, match="the tokenizers library fails on it"):
        load_tokenizer(tmp_path, 3072)
    capfd.readouterr()  # the library prints where it crashed


def test_a_padded_vocabulary_is_said_and_loads(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(_nano_tokenizer())
    with pytest.warns(UserWarning, match="has 3,072 tokens, vocab_size is 3,136: the 64 ids above are padding"):
        assert load_tokenizer(tmp_path, 3136) is not None
    with pytest.raises(ValueError, match="has 3,072 tokens, more than vocab_size 3,000"):
        load_tokenizer(tmp_path, 3000)
