"""Reading: what good folders give, and one clear error for every kind of bad one."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsv4.checkpoint import CheckpointError, CheckpointReader
from dsv4.checkpoint.inventory import INDEX_NAME, UNFINISHED_NAME
from dsv4.kernels import quant

FILE = "model.safetensors"


def _tensors() -> dict[str, Tensor]:
    return {
        "a.weight": torch.randn(4, 8).to(torch.bfloat16),
        "b": torch.arange(6, dtype=torch.int64).reshape(2, 3),
        "c": torch.randn(()),
        "empty": torch.zeros(0, 4),
        "f8": torch.randn(3, 5).to(torch.float8_e4m3fn),
        "odd": torch.arange(3, dtype=torch.int8),
    }


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    save_file(_tensors(), tmp_path / FILE)
    return tmp_path


def _write_raw(folder: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    prefix = struct.pack("<Q", len(text) if length is None else length)
    (folder / FILE).write_bytes(prefix + text + data)
    return folder


def _f32(*offsets: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(offsets[1] - offsets[0]) // 4], "data_offsets": list(offsets)}


def test_reads_what_safetensors_wrote(plain: Path) -> None:
    reader = CheckpointReader(plain)
    expected = load_file(plain / FILE)
    assert set(reader.names()) == set(expected)
    assert len(reader) == len(expected)
    for name, tensor in expected.items():
        got = reader.tensor(name)
        assert name in reader
        assert got.dtype == tensor.dtype == reader.spec(name).dtype
        assert got.shape == tensor.shape == reader.spec(name).shape
        assert torch.equal(got.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
        assert reader.file_of(name) == plain / FILE
    with pytest.raises(CheckpointError, match="no tensor 'nothing'"):
        reader.tensor("nothing")


def test_tensors_are_views_that_never_reach_the_file(plain: Path) -> None:
    before = (plain / FILE).read_bytes()
    reader = CheckpointReader(plain)
    first, second = reader.tensor("b"), reader.tensor("b")
    assert first.data_ptr() == second.data_ptr()
    first.fill_(7)
    reader.release()
    assert first.tolist() == [[7] * 3] * 2
    assert CheckpointReader(plain).tensor("b").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (plain / FILE).read_bytes() == before


def test_a_long_pass_drops_the_maps_now_and_then(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv4.checkpoint.reader._MAP_BYTES", 100)
    reader, mapped = CheckpointReader(plain), []
    for _ in range(6):
        reader.tensor("b")
        reader.release_after(48)
        mapped.append(bool(reader.maps()))
    assert mapped == [True, True, False] * 2


def test_a_tensor_that_the_file_does_not_align_is_still_right(tmp_path: Path) -> None:
    header = {"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "y": _f32(1, 9)}
    text = json.dumps(header)
    text += " " * (-len(text) % 8)
    _write_raw(tmp_path, text.encode(), b"\1" + struct.pack("<2f", 1.5, -2.0))
    assert CheckpointReader(tmp_path).tensor("y").tolist() == [1.5, -2.0]


def test_weights_are_dequantised(tmp_path: Path) -> None:
    w_NK = torch.randn(130, 160)
    w8, s8 = quant.quantize_fp8_weight(w_NK)
    w4, s4 = quant.quantize_fp4_weight(w_NK)
    tensors = {
        "p.weight": w8,
        "p.scale": s8,
        "q.weight": w4,
        "q.scale": s4,
        "r.weight": w_NK,
        "t": s8.clone(),
    }
    save_file(tensors, tmp_path / FILE)
    reader = CheckpointReader(tmp_path)
    assert torch.equal(reader.dequantized("p.weight"), quant.dequantize_fp8_weight(w8, s8))
    assert torch.equal(
        reader.dequantized("q.weight", torch.bfloat16), quant.dequantize_fp4_weight(w4, s4, torch.bfloat16)
    )
    assert torch.equal(reader.dequantized("r.weight"), w_NK)
    with pytest.raises(CheckpointError, match=r"'t'.*not a weight"):
        reader.dequantized("t")


def test_a_weight_without_its_scale_is_named(tmp_path: Path) -> None:
    w8, s8 = quant.quantize_fp8_weight(torch.randn(4, 4))
    save_file({"p.weight": w8, "q.weight": w8.clone(), "q.scale": torch.cat([s8, s8])}, tmp_path / FILE)
    reader = CheckpointReader(tmp_path)
    with pytest.raises(CheckpointError, match=r"'p\.weight'.*has no 'p\.scale'"):
        reader.dequantized("p.weight")
    with pytest.raises(CheckpointError, match=r"'q\.scale'.*needs a scale of shape"):
        reader.dequantized("q.weight")


@pytest.mark.parametrize(
    ("header", "data", "text"),
    [
        ({"t": _f32(0, 8)}, b"\0" * 7, "truncated: tensor 't' ends"),
        ({"t": _f32(0, 2**62)}, b"\0" * 8, "truncated: tensor 't' ends"),
        ({"t": _f32(0, 8)}, b"\0" * 9, "1 bytes after the last tensor"),
        ({"t": _f32(0, 8), "u": _f32(4, 12)}, b"\0" * 12, "tensor 'u' overlaps"),
        ({"t": _f32(0, 4), "u": _f32(8, 12)}, b"\0" * 12, "tensor 'u' leaves a gap"),
        ({"t": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}}, b"\0" * 12, "tensor 't'.*begin, end"),
        ({"t": _f32(-4, 4)}, b"\0" * 12, "tensor 't'.*begin, end"),
        ({"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**70]}}, b"", "'t': data_offsets"),
        ({"t": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"\0" * 8, "needs 12 bytes"),
        ({"t": {"dtype": "F32", "shape": [2**62] * 16, "data_offsets": [0, 8]}}, b"\0" * 8, "'t'.*needs"),
        ({"t": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, b"\0" * 8, "'t': shape"),
        ({"t": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}, b"\0" * 8, "'t': shape"),
        ({"t": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, b"\0" * 4, "'t': shape"),
        (
            {"t": {"dtype": "Q4_K", "shape": [2], "data_offsets": [0, 8]}},
            b"\0" * 8,
            "'t': unknown dtype 'Q4_K'",
        ),
        ({"t": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8, "unknown dtype"),
        ({"t": {"dtype": "F32"}}, b"", "'t': expected dtype, shape and data_offsets"),
        ({"t": 3}, b"", "'t': expected dtype"),
        (b'{"t": 1, "t": 2}', b"", "'t' occurs twice"),
        (b'{"\xff\xfe": 1}', b"", "not valid UTF-8"),
        (b"[]", b"", "expected a JSON object"),
        (b"{", b"", "not valid JSON"),
        (b'{"a":' + b"[" * 100_000, b"", "not valid JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", b"", "not valid JSON"),
    ],
)
def test_hostile_headers(tmp_path: Path, header: Any, data: bytes, text: str) -> None:
    _write_raw(tmp_path, header, data)
    with pytest.raises(CheckpointError, match=text) as caught:
        CheckpointReader(tmp_path)
    assert str(tmp_path / FILE) in str(caught.value)


@pytest.mark.parametrize(
    ("length", "text"), [(2**63, "above the limit"), (90_000_000, "truncated"), (1000, "truncated")]
)
def test_header_length_is_not_believed(tmp_path: Path, length: int, text: str) -> None:
    _write_raw(tmp_path, {}, length=length)
    with pytest.raises(CheckpointError, match=text):
        CheckpointReader(tmp_path)


@pytest.mark.parametrize("size", [0, 5, 20, -1])
def test_files_cut_off_anywhere(plain: Path, size: int) -> None:
    content = (plain / FILE).read_bytes()
    (plain / FILE).write_bytes(content[:size])
    with pytest.raises(CheckpointError, match=f"{FILE}: {'truncated' if size else 'the file is empty'}"):
        CheckpointReader(plain)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickle_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointError, match=f"{name}: pickle files can run code"):
        CheckpointReader(tmp_path)


def test_folders_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no safetensors files"):
        CheckpointReader(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        CheckpointReader(tmp_path / "nowhere")
    (tmp_path / UNFINISHED_NAME).write_text("{}")
    with pytest.raises(CheckpointError, match="unfinished conversion"):
        CheckpointReader(tmp_path)


def _two_shards(folder: Path) -> tuple[dict[str, str], Callable[[dict[str, Any]], None]]:
    names = [f"model-{i:05d}-of-00002.safetensors" for i in (1, 2)]
    save_file({"a": torch.ones(1), "b": torch.ones(2)}, folder / names[0])
    save_file({"c": torch.ones(3)}, folder / names[1])

    def write_index(index: dict[str, Any]) -> None:
        (folder / INDEX_NAME).write_text(json.dumps(index))

    return {"a": names[0], "b": names[0], "c": names[1]}, write_index


def test_shards_with_and_without_an_index(tmp_path: Path) -> None:
    weight_map, write_index = _two_shards(tmp_path)
    assert set(CheckpointReader(tmp_path).names()) == {"a", "b", "c"}
    write_index({"metadata": {}, "weight_map": weight_map})
    save_file({"stray": torch.ones(1)}, tmp_path / "other.safetensors")  # not in the index: not ours
    assert set(CheckpointReader(tmp_path).names()) == {"a", "b", "c"}
    (tmp_path / INDEX_NAME).unlink()
    (tmp_path / weight_map["c"]).unlink()
    with pytest.raises(CheckpointError, match=r"not one set.*model-00002-of-00002"):
        CheckpointReader(tmp_path)


def test_index_and_files_must_agree(tmp_path: Path) -> None:
    weight_map, write_index = _two_shards(tmp_path)
    first, second = weight_map["a"], weight_map["c"]
    for change, text in [
        ({"d": second}, f"{second}: tensor 'd' is in the index but not in the file"),
        ({"c": first}, f"{second}|{first}: tensor 'c'"),
        ({"d": "model-00003-of-00003.safetensors"}, "model-00003-of-00003.safetensors: missing"),
        ({"d": "../model.safetensors"}, "'d' must lie in a .safetensors file of this folder"),
        ({"d": "/etc/passwd"}, "'d' must lie"),
        ({"d": "model.bin"}, "'d' must lie"),
        ({"d": 3}, "'d' must lie"),
    ]:
        write_index({"weight_map": weight_map | change})
        with pytest.raises(CheckpointError, match=text):
            CheckpointReader(tmp_path)
    write_index({"weight_map": {"a": first, "c": second}})
    with pytest.raises(CheckpointError, match=f"{first}: tensor 'b' is not in the index"):
        CheckpointReader(tmp_path)
    for index, text in [({}, "weight_map must be"), ({"weight_map": {}}, "weight_map must be")]:
        write_index(index)
        with pytest.raises(CheckpointError, match=text):
            CheckpointReader(tmp_path)
    (tmp_path / INDEX_NAME).write_bytes(b"\xff{")
    with pytest.raises(CheckpointError, match=f"{INDEX_NAME}: not valid UTF-8"):
        CheckpointReader(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    weight_map, write_index = _two_shards(tmp_path)
    save_file({"c": torch.ones(3), "a": torch.zeros(1)}, tmp_path / weight_map["c"])
    write_index({"weight_map": weight_map})
    with pytest.raises(CheckpointError, match="tensor 'a' is also in"):
        CheckpointReader(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    weight_map, write_index = _two_shards(tmp_path)
    write_index({"weight_map": weight_map})
    (tmp_path / weight_map["c"]).unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors: missing$"):
        CheckpointReader(tmp_path)
