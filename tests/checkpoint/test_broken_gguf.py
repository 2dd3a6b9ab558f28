"""GGUF files that are truncated, hostile, or another model's: one sentence with file and key or tensor, no other
error, and nothing is written."""

import json
import random
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsv4.checkpoint import CheckpointError, convert
from dsv4.checkpoint.check import check_folder
from dsv4.checkpoint.gguf.check import check_gguf
from dsv4.checkpoint.gguf.container import Scalars, encode_gguf_header, read_gguf
from dsv4.checkpoint.gguf.export import export_gguf
from dsv4.checkpoint.gguf.source import is_gguf
from dsv4.checkpoint.gguf.types import F32, GgmlType
from dsv4.cli.check import check
from dsv4.cli.convert import convert as convert_verb
from dsv4.cli.inspect import describe, find_config
from tests.checkpoint.folders import rewrite
from tests.conftest import ROOT

Edit = Callable[[bytearray], Any]


@pytest.fixture
def file(save, tmp_path: Path) -> Path:
    export_gguf(save("release"), tmp_path / "m.gguf")
    return tmp_path / "m.gguf"


def refused(file: Path) -> str:
    """What a conversion says, which must be what check says."""
    target = file.parent / "out"
    with pytest.raises(CheckpointError) as caught:
        convert(file, target)
    assert not target.exists()
    report = check_gguf(file)
    assert not report.ok
    assert str(caught.value).startswith(str(file))
    assert any(problem in str(caught.value) for problem in report.problems)
    return str(caught.value)


def edited(file: Path, edit: Edit) -> str:
    data = bytearray(file.read_bytes())
    edit(data)
    file.write_bytes(data)
    return refused(file)


def value_of(data: bytearray, key: str) -> int:
    """Where the value of a key begins, behind the number of its type."""
    return data.index(key.encode()) + len(key) + 4


def tensor_entry(data: bytearray, name: str) -> int:
    """Where the entry of a tensor begins, behind its name."""
    return data.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)


@pytest.mark.parametrize(
    ("begin", "text"),
    [
        (b"", "the file is empty"),
        (b"GG", "text in place of the file (a download that failed?): 'GG'"),
        (b"GGUF", "truncated in the header, at version"),
        (b"GGUF\1\0\0\0" + bytes(16), "GGUF version must be 2 or 3, got 1"),
        (b"GGUF\0\0\0\3" + bytes(16), "GGUF version must be 2 or 3, got"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 1 << 40, 0), "at most 400,000 tensors, claims"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 1 << 40), "at most 65,536 keys, claims"),
        (struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 1 << 40) + bytes(64), "a key has 1,099,511,627,776 bytes"),
        (struct.pack("<4sIQQQsI", b"GGUF", 3, 0, 1, 1, b"k", 99) + bytes(8), "key 'k': values of type 99"),
        (struct.pack("<4sIQQQsIIQ", b"GGUF", 3, 0, 1, 1, b"k", 9, 4, 1 << 50), "key 'k' has 1,125,899,906,842,624"),
        (struct.pack("<4sIQQQsIQ2s", b"GGUF", 3, 0, 1, 1, b"k", 8, 2, b"\xff\xff"), "key 'k' is not valid UTF-8"),
        (b"<!DOCTYPE html><html>", "an HTML page in place of the file"),
    ],
)
def test_headers_that_are_none(tmp_path: Path, begin: bytes, text: str) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(begin)
    assert text in refused(file)


def test_a_truncated_file_names_the_tensor_it_ends_in(file: Path) -> None:
    last = list(read_gguf(file).tensors)[-1]
    text = edited(file, lambda data: data.__delitem__(slice(len(data) - 1, None)))
    assert f"truncated: tensor {last!r} ends at byte" in text


@pytest.mark.parametrize(
    ("name", "offset", "value", "text"),
    [
        ("output_norm.weight", 0, struct.pack("<I", 9), "must have 1 to 4 dimensions, got 9"),
        ("output_norm.weight", 4, struct.pack("<Q", 1 << 62), "impossible shape"),
        ("output_norm.weight", 4, struct.pack("<Q", 0), "impossible shape"),
        ("output_norm.weight", 12, struct.pack("<I", 77), "unknown tensor type 77"),
        ("output_norm.weight", 12, struct.pack("<I", 26), r"should be BF16 \[256\], is I32 \[256\]"),
        ("output_norm.weight", 16, struct.pack("<Q", 8), "offset 8 is no multiple of 32"),
        ("output_norm.weight", 16, struct.pack("<Q", 0), "overlaps the tensor before it"),
        ("output_norm.weight", 16, struct.pack("<Q", 1 << 60), "truncated: tensor 'output_norm.weight' ends"),
        ("blk.0.attn_q_a.weight", 4, struct.pack("<Q", 100), "Q8_0 packs 32 values of a row, 100 columns"),
    ],
)
def test_tensors_whose_claims_are_false(file: Path, name: str, offset: int, value: bytes, text: str) -> None:
    def edit(data: bytearray) -> None:
        at = tensor_entry(data, name) + offset
        data[at : at + len(value)] = value

    told = edited(file, edit)
    assert text.replace("\\", "") in told
    assert name.removesuffix(".weight").split(".")[-1].removeprefix("output_") in told


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("deepseek4.expert_gating_func", struct.pack("<I", 2), "must be 4 (sqrtsoftplus), got 2"),
        ("deepseek4.block_count", struct.pack("<I", 5), "compress_ratios must be a list of at least 5 integers"),
        ("deepseek4.attention.head_count_kv", struct.pack("<I", 8), "head_count_kv must be 1 in DeepSeek-V4, got 8"),
        ("deepseek4.expert_weights_norm", b"\0", "expert_weights_norm must be True in DeepSeek-V4, got False"),
        ("deepseek4.expert_count", struct.pack("<I", 3), "experts"),
        ("deepseek4.attention.key_length", struct.pack("<I", 0), "head_dim must be an integer in"),
        ("deepseek4.hyper_connection.epsilon", struct.pack("<f", float("nan")), "hc_eps must be"),
        ("deepseek4.rope.scaling.factor", struct.pack("<f", float("inf")), "factor must be"),
        ("deepseek4.vocab_size", struct.pack("<I", 95), "should be BF16 [95, 256]"),
    ],
)
def test_keys_that_describe_another_model(file: Path, key: str, value: bytes, text: str) -> None:
    def edit(data: bytearray) -> None:
        at = value_of(data, key)
        data[at : at + len(value)] = value

    assert text in edited(file, edit)


def test_more_experts_than_the_model_has_are_refused_before_they_are_listed(file: Path) -> None:
    """Each would become an entry of its own, and a sparse file has room for any number."""

    def edit(data: bytearray) -> None:
        at, behind = tensor_entry(data, "blk.0.ffn_up_exps.weight"), len(data) // 32 * 32 + 32
        data[at : at + 40] = struct.pack("<I3QIQ", 3, 1, 1, 200_000, 24, behind)
        data += bytes(behind + 200_000)

    assert "tensor 'blk.0.ffn_up_exps.weight' has 200,000 experts, the model 4" in edited(file, edit)


def test_other_architectures_and_tensors_are_named(tmp_path: Path) -> None:
    header, _ = encode_gguf_header({"general.architecture": "llama"}, {})
    (tmp_path / "m.gguf").write_bytes(header)
    assert "general.architecture must be 'deepseek4' (DeepSeek-V4), got 'llama'" in refused(tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["deepseek4.attention.q_lora_rank", "general.architecture"])
def test_a_missing_key_is_named(file: Path, name: str) -> None:
    told = edited(file, lambda data: data.__setitem__(data.index(name.encode()), ord("X")))
    assert name in told


def test_a_missing_tensor_and_an_unknown_one_are_named(file: Path) -> None:
    told = edited(file, lambda data: data.__setitem__(data.index(b"output_norm.weight"), ord("X")))
    assert "tensor 'Xutput_norm.weight' is none of DeepSeek-V4's" in told


def test_alignment_must_be_a_power_of_two(tmp_path: Path) -> None:
    tensors: dict[str, tuple[GgmlType, tuple[int, ...]]] = {"x": (F32, (8,))}
    header, _ = encode_gguf_header({"general.alignment": Scalars("I", [24], array=False)}, tensors)
    (tmp_path / "m.gguf").write_bytes(header + bytes(32))
    assert "general.alignment must be a power of two from 8" in refused(tmp_path / "m.gguf")


def test_any_changed_byte_of_the_header_gives_a_sentence_or_a_model(file: Path) -> None:
    """Never another error than CheckpointError, never memory in proportion to a claim."""
    data, rng = file.read_bytes(), random.Random(0)
    end = min(tensor.begin for tensor in read_gguf(file).tensors.values())
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 4))):
            changed[rng.randrange(end)] = rng.randrange(256)
        file.write_bytes(changed)
        check_gguf(file)
    for _ in range(50):
        file.write_bytes(data[: rng.randrange(len(data))])
        assert not check_gguf(file).ok


def test_deep_finds_what_is_not_a_number(file: Path) -> None:
    place = read_gguf(file).tensors["output_norm.weight"].begin
    data = bytearray(file.read_bytes())
    data[place : place + 4] = struct.pack("<f", float("nan"))
    file.write_bytes(data)
    assert check_gguf(file).ok
    assert "tensor 'norm.weight' holds NaN or infinity at [0]" in check_gguf(file, deep=True).problems[0]


def test_tables_that_name_no_expert_are_refused_in_both_directions(save, file: Path, tmp_path: Path) -> None:
    place = read_gguf(file).tensors["blk.0.ffn_gate_tid2eid.weight"].begin
    for value in (4, -1):  # there are 0 to 3
        told = edited(
            file, lambda data, value=value: data.__setitem__(slice(place, place + 4), struct.pack("<i", value))
        )
        assert f"{file}: tensor 'layers.0.ffn.gate.tid2eid' names experts " in told
        assert check_gguf(file, deep=True).problems == check_gguf(file).problems

    def spoil(tensors: dict[str, Any]) -> None:
        tensors["layers.0.ffn.gate.tid2eid"][0, 0] = 4

    src = rewrite(save("release", name="spoilt"), spoil)
    for deep in (False, True):
        assert "names experts 0 to 4, there are 0 to 3" in check_folder(src, deep=deep).problems[0]
    with pytest.raises(CheckpointError, match="names experts 0 to 4"):
        export_gguf(src, tmp_path / "x.gguf")
    with pytest.raises(CheckpointError, match="names experts 0 to 4"):
        convert(src, tmp_path / "x", dtype="bf16")


def test_a_float_that_is_none_is_told_with_its_file(save, tmp_path: Path) -> None:
    file = tmp_path / "f32.gguf"
    export_gguf(save("release"), file, dtype="fp32")
    place = read_gguf(file).tensors["blk.0.attn_q_a.weight"].begin
    data = bytearray(file.read_bytes())
    data[place : place + 4] = struct.pack("<f", float("inf"))
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(file))}: tensor 'layers.0.attn.wq_a.weight': "):
        convert(file, tmp_path / "out")


def test_the_verbs_tell_what_a_file_is(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(file, json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert report["layout"].startswith("GGUF (")
    assert "MXFP4 " in report["layout"]
    name, config, place = find_config(str(file))
    assert name == "m.gguf"
    disk = describe(name, config, place)["disk"]
    assert disk["tensors"] == report["tensors"] == len(read_gguf(file).tensors)
    assert disk["bytes"] == report["bytes"]


def test_the_verb_chooses_by_the_name_of_the_target(save, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = save("release")
    convert_verb(src, tmp_path / "a.gguf", dtype="f16")
    assert "a.gguf: complete, F16, experts MXFP4" in capsys.readouterr().err
    convert_verb(tmp_path / "a.gguf", tmp_path / "a")
    assert "a: complete, layout release" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--adapter goes with a folder"):
        convert_verb(src, tmp_path / "b.gguf", adapter=src)
    convert_verb(src, tmp_path / "C.GGUF")
    assert is_gguf(tmp_path / "C.GGUF")
    with pytest.raises(ValueError, match=r"^--dtype must be one of q8_0, f16, bf16, fp32 for a GGUF"):
        convert_verb(src, tmp_path / "b.gguf", dtype="release")
    with pytest.raises(ValueError, match="no layout has dtype 'q8_0'"):
        convert_verb(src, tmp_path / "b", dtype="q8_0")
    with pytest.raises(ValueError, match="--requantize is for FP8 experts"):
        convert_verb(src, tmp_path / "b.gguf", requantize=True)
    assert not list(tmp_path.glob("b*"))


def test_a_header_that_ends_early_is_called_truncated(file: Path) -> None:
    data = file.read_bytes()
    end = min(tensor.begin for tensor in read_gguf(file).tensors.values())
    for length in range(24, end - 32, end // 40):
        file.write_bytes(data[:length])
        assert "truncated in the header" in refused(file)


def test_values_that_are_not_finite_are_refused_in_both_directions(save, file: Path, tmp_path: Path) -> None:
    """A scale of FP4 experts whose bits are only moved, and a weight that is multiplied out."""
    for name, at, value, parameter in (
        ("blk.2.ffn_up_exps.weight", 0, b"\xff", "layers.2.ffn.experts.0.w3.weight"),
        ("blk.0.attn_q_a.weight", 0, struct.pack("<e", float("nan")), "layers.0.attn.wq_a.weight"),
    ):
        begin, data = read_gguf(file).tensors[name].begin + at, bytearray(file.read_bytes())
        data[begin : begin + len(value)] = value
        (tmp_path / "bad.gguf").write_bytes(data)
        for dtype in ("release", "bf16"):
            with pytest.raises(CheckpointError, match=f"{parameter}.*NaN"):
                convert(tmp_path / "bad.gguf", tmp_path / f"{parameter}{dtype}", dtype=dtype)

    def spoil(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if name == "norm.weight":
                tensor[0] = float("inf")

    src = rewrite(save("release", name="spoilt"), spoil)
    for dtype in ("q8_0", "fp32"):
        with pytest.raises(CheckpointError, match=r"'norm\.weight': holds NaN or infinity"):
            export_gguf(src, tmp_path / "x.gguf", dtype=dtype)
    assert not list(tmp_path.glob("x.gguf*"))


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda d: d["added_tokens"][0].pop("id"), "token ids must be integers from 0, got None"),
        (lambda d: d["added_tokens"][0].update(id=10**6), "more than vocab_size"),
        (lambda d: d["added_tokens"][0].update(content=None), "content must be a text, got None"),
        (lambda d: d["model"].update(merges=[None]), "model.merges must be pairs of texts, got None"),
        (lambda d: d.update(normalizer={"type": "NFC"}), "normalizer must be null"),
    ],
)
def test_a_tokenizer_that_no_file_can_hold_is_named(tmp_path: Path, edit: Callable[[Any], Any], text: str) -> None:
    src = tmp_path / "nano"
    shutil.copytree(ROOT / "models" / "nano", src)
    definition = json.loads((src / "tokenizer.json").read_text())
    edit(definition)
    (src / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(ValueError, match=re.escape(f"{src / 'tokenizer.json'}: ") + f".*{text}"):
        export_gguf(src, tmp_path / "x.gguf")
    assert not list(tmp_path.glob("x.gguf*"))


def test_a_type_that_needs_a_package_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save
) -> None:
    monkeypatch.setattr("dsv4.checkpoint.gguf.blocks._package_installed", lambda: False)
    file = tmp_path / "k.gguf"
    export_gguf(save("release"), file, dtype="bf16")

    def edit(data: bytearray) -> None:  # 256 columns of Q4_K are shorter than those of BF16
        at = tensor_entry(data, "blk.0.attn_q_a.weight") + 4 + 2 * 8
        data[at : at + 4] = struct.pack("<I", 12)

    assert "layers.0.attn.wq_a.weight', GGUF Q4_K: this type is read by the package gguf" in edited(file, edit)


def test_progress_of_a_deep_check_counts_bytes_of_the_file(file: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = check_gguf(file, deep=True, progress=lambda done, total, name: seen.append((done, total)))
    assert seen[-1] == (report.bytes, report.bytes)
