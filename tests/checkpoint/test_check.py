"""check_folder lists everything at once; the two commands on top of it."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsv4.checkpoint import check_folder
from dsv4.checkpoint.inventory import INDEX_NAME
from dsv4.cli.check import check
from dsv4.cli.convert import convert
from dsv4.config import ModelConfig


def test_a_good_folder(save) -> None:
    report = check_folder(save("release"))
    assert (report.ok, report.layout, report.files, report.problems) == (True, "release", 7, ())


def test_all_problems_are_listed(save) -> None:
    folder = save("release")
    second = folder / "model-00002-of-00007.safetensors"
    tensors = load_file(second)
    tensors["layers.0.attn_norm.weight"] = torch.ones(3)
    tensors["layers.0.attn.extra.weight"] = torch.ones(3)
    del tensors["layers.0.ffn_norm.weight"]
    save_file(tensors, second)
    (folder / "model-00005-of-00007.safetensors").unlink()
    third = folder / "model-00003-of-00007.safetensors"
    third.write_bytes(third.read_bytes()[:-3])
    text = "\n".join(check_folder(folder).problems)
    for part in (
        "00005-of-00007.safetensors: missing",
        "00003-of-00007.safetensors: truncated",
        "'layers.0.attn.extra.weight' is not in the index",
        "'layers.0.ffn_norm.weight' is in the index but not in the file",
        "'layers.0.attn_norm.weight' should be BF16 [256], is F32 [3]",
        "unknown tensor 'layers.0.attn.extra.weight'",
    ):
        assert part in text


def test_missing_tensors_are_listed(save) -> None:
    folder = save("release")
    deeper = ModelConfig.from_file(folder).with_changes(vocab_size=97)
    assert len(check_folder(folder, deeper).problems) == 3  # embedding, head, hash table
    (folder / INDEX_NAME).unlink()
    second = folder / "model-00002-of-00007.safetensors"
    tensors = load_file(second)
    del tensors["layers.0.ffn_norm.weight"]
    save_file(tensors, second)
    assert check_folder(folder).problems == (f"{folder}: tensor 'layers.0.ffn_norm.weight' is missing",)


def test_config_and_index_must_agree_with_the_files(save) -> None:
    folder = save("bf16")
    raw = json.loads((folder / "config.json").read_text())
    quantised = ModelConfig.from_file(folder).with_changes(quantized=True, expert_dtype="fp4").to_dict()
    (folder / "config.json").write_text(json.dumps(quantised))
    report = check_folder(folder)
    assert report.ok  # a load goes by the files
    assert any("has quantization_config, the linears are stored in bf16" in note for note in report.notes)
    assert any("expert_dtype is fp4, the experts are stored in bf16" in note for note in report.notes)
    (folder / "config.json").write_text(json.dumps(raw))
    index = json.loads((folder / INDEX_NAME).read_text())
    index["metadata"]["total_size"] += 1
    (folder / INDEX_NAME).write_text(json.dumps(index))
    report = check_folder(folder)
    assert (report.ok, len(report.notes)) == (True, 1)
    assert "the index gives a total size of" in report.notes[0]
    (folder / "config.json").write_text("{}")
    assert "compress_ratios" in check_folder(folder).problems[0]
    (folder / "config.json").unlink()
    assert "no config.json" in check_folder(folder).problems[0]


def test_sizes_that_fp4_cannot_hold(save) -> None:
    folder = save("release")
    report = check_folder(folder, ModelConfig.from_file(folder).with_changes(moe_intermediate_size=48))
    assert any("experts.0.w2.weight': FP4 needs a multiple of 32 columns" in problem for problem in report.problems)


def test_nothing_there(tmp_path: Path) -> None:
    report = check_folder(tmp_path / "nowhere")
    assert not report.ok
    assert report.layout is None
    assert report.tensors == 0


def test_check_command(save, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save("release")
    check(folder)
    assert capsys.readouterr().out.startswith(f"{folder}: ok: layout release")
    check(folder, json=True)
    assert json.loads(capsys.readouterr().out)["ok"] is True
    (folder / "model-00005-of-00007.safetensors").unlink()
    with pytest.raises(SystemExit) as caught:
        check(folder)
    assert caught.value.code == 1
    assert "00005-of-00007.safetensors: missing" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        check(folder, json=True)
    assert json.loads(capsys.readouterr().out)["problems"]


def test_convert_command(save, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(save("release"), tmp_path / "out", experts="fp8")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "complete, layout release_fp8" in captured.err
    assert check_folder(tmp_path / "out").layout == "release_fp8"


def test_commands_load_torch_only_when_they_run() -> None:
    code = "import sys; import dsv4.cli.check, dsv4.cli.convert; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    for command in (check, convert):
        for parameter in inspect.signature(command).parameters:
            assert f"\n    {parameter}\n" in (inspect.getdoc(command) or "").replace("\n", "\n    "), parameter


def test_check_deep_command(save, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save("bf16")
    file = folder / "model-00001-of-00007.safetensors"
    tensors = load_file(file)
    tensors["embed.weight"][3, 7] = float("nan")
    save_file(tensors, file)
    for options in ({"deep": True}, {"deep": True, "json": True}):
        with pytest.raises(SystemExit):
            check(folder, **options)
        assert "'embed.weight' holds NaN or infinity at [3, 7]" in capsys.readouterr().out
