"""GGUF: blocks, and folder -> file -> folder with equal bits or values; forms that need rounding say so."""

import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.sparse_folder import SHAPES, write_random
from dsv4.checkpoint import CheckpointError, CheckpointReader, check_folder, convert, parameters, state_for
from dsv4.checkpoint.gguf.blocks import method_of, mxfp4_blocks, mxfp4_released, q8_0_blocks, q8_0_values
from dsv4.checkpoint.gguf.container import MetadataValue, Scalars, encode_gguf_header, read_gguf
from dsv4.checkpoint.gguf.export import export_gguf
from dsv4.checkpoint.gguf.metadata import shortest_decimal
from dsv4.checkpoint.gguf.names import gguf_place, parameter_of
from dsv4.checkpoint.gguf.source import open_gguf
from dsv4.checkpoint.gguf.types import MXFP4, TYPES
from dsv4.config import ModelConfig
from dsv4.kernels.quant import dequantize_weight, quantize_fp4_weight
from tests.checkpoint.folders import rewrite
from tests.conftest import ROOT

NANO = ROOT / "models" / "nano"


def _values(folder: Path) -> dict[str, Tensor]:
    """Every parameter of the backbone, multiplied out."""
    config = ModelConfig.from_file(folder).without_prediction()
    return dict(state_for(config, CheckpointReader(folder), "fp32", mtp=False))


@pytest.fixture(scope="module")
def nano_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "nano.gguf"
    export_gguf(NANO, file)
    return file


def _encodable(value: Any) -> MetadataValue:
    """A key's value as read, to be written again."""
    if isinstance(value, str):
        return value
    items = value if isinstance(value, list) else [value]
    if isinstance(items[0], str):
        return items
    letter = {bool: "?", int: "i", float: "f"}[type(items[0])]
    return Scalars(letter, items, array=isinstance(value, list))


def test_every_parameter_has_a_place_and_comes_back(tiny: ModelConfig) -> None:
    places = {p.name: gguf_place(p.name) for p in parameters(tiny) if not p.prediction}
    assert len(set(places.values())) == len(places)
    for name, place in places.items():
        back = parameter_of(place.tensor)
        assert back is not None
        assert back.replace("*", str(place.expert)) == name
    assert parameter_of("blk.0.attn_q.weight") is None
    with pytest.raises(KeyError):
        gguf_place("mtp.0.e_proj.weight")


def test_q8_0_is_that_of_ggml() -> None:
    gguf = pytest.importorskip("gguf")
    w_NK = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    w_NK[3, :32] = 0
    w_NK[4, :32] = torch.arange(32) + 0.5  # ties
    w_NK[4, 0] = 127
    blocks = q8_0_blocks(w_NK)
    kind = gguf.GGMLQuantizationType.Q8_0
    assert torch.equal(blocks, torch.from_numpy(gguf.quants.quantize(w_NK.numpy(), kind)))
    assert torch.equal(q8_0_values(blocks), torch.from_numpy(gguf.quants.dequantize(blocks.numpy(), kind)))


def test_q8_0_of_a_block_by_hand() -> None:
    w_NK = torch.zeros(1, 32)
    w_NK[0, :4] = torch.tensor([254.0, -1.0, 1.0, -3.1])  # d is 2: halves round away from zero
    blocks = q8_0_blocks(w_NK)
    assert bytes(blocks[0, :6].tolist()) == struct.pack("<e4b", 2.0, 127, -1, 1, -2)
    with pytest.raises(ValueError, match="below 2\\^23"):
        q8_0_blocks(torch.full((1, 32), 1e7))
    with pytest.raises(ValueError, match="below 2\\^23"):
        q8_0_blocks(torch.full((1, 32), float("nan")))


def test_mxfp4_moves_bits_and_keeps_them() -> None:
    generator = torch.Generator().manual_seed(0)
    packed = torch.randint(-128, 128, (16, 32), dtype=torch.int8, generator=generator)
    scale = torch.randint(0, 255, (16, 2), dtype=torch.uint8, generator=generator).view(torch.float8_e8m0fnu)
    blocks = mxfp4_blocks(packed, scale)
    again, scale_again = mxfp4_released(blocks)
    assert torch.equal(again, packed)
    assert torch.equal(scale_again.view(torch.uint8), scale.view(torch.uint8))
    first = packed.view(torch.uint8)[0]
    codes = [code for byte in first[:16].tolist() for code in (byte & 15, byte >> 4)]
    assert blocks[0, 1:17].tolist() == [codes[j] | codes[j + 16] << 4 for j in range(16)]
    assert int(blocks[0, 0]) == int(scale.view(torch.uint8)[0, 0])


def test_mxfp4_has_the_values_that_ggml_reads() -> None:
    gguf = pytest.importorskip("gguf")
    packed, scale = quantize_fp4_weight(torch.randn(8, 128, generator=torch.Generator().manual_seed(0)))
    values = gguf.quants.dequantize(mxfp4_blocks(packed, scale).numpy(), gguf.GGMLQuantizationType.MXFP4)
    assert torch.equal(torch.from_numpy(values), dequantize_weight(packed, scale))


def test_q2_k_has_the_values_of_its_definition() -> None:
    """Through the package gguf, against the definition: 16 groups of 16 with 4-bit scale and minimum."""
    pytest.importorskip("gguf")
    kind = next(kind for kind in TYPES.values() if kind.name == "Q2_K")
    block = torch.randint(0, 256, (80,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    d, dmin = 0.5, 0.25
    data = bytes(block.tolist()) + struct.pack("<2e", d, dmin)
    scales, codes = data[:16], data[16:80]
    expected = []
    for value in range(256):
        half, within = divmod(value, 128)
        shift, column = 2 * (within // 32), within % 32
        group = scales[value // 16]
        code = codes[32 * half + column] >> shift & 3
        expected.append(d * (group & 15) * code - dmin * (group >> 4))
    parts = {"blocks": torch.tensor(list(data), dtype=torch.uint8).unsqueeze(0)}
    assert method_of(kind).values(parts, (1, 256)).tolist() == [expected]


def test_other_types_name_the_package_that_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    kind = next(kind for kind in TYPES.values() if kind.name == "Q4_K")
    with pytest.raises(ValueError, match=r"pip install 'dsv4\[gguf\]'"):
        method_of(kind).values({"blocks": torch.zeros(1, 144, dtype=torch.uint8)}, (1, 256))


@pytest.mark.parametrize("dtype", ["q8_0", "f16", "bf16", "fp32"])
def test_fp4_experts_come_back_bit_for_bit(save, tmp_path: Path, dtype: str) -> None:
    src = save("release")
    assert export_gguf(src, tmp_path / "m.gguf", dtype=dtype).endswith("experts MXFP4")
    assert convert(tmp_path / "m.gguf", tmp_path / "back").name == "release"
    assert check_folder(tmp_path / "back").ok
    before, after = CheckpointReader(src), CheckpointReader(tmp_path / "back")
    experts = [name for name in before.names() if ".experts." in name and name.startswith("layers.")]
    assert len(experts) == 4 * 4 * 3 * 2
    for name in experts:
        assert torch.equal(before.tensor(name).view(torch.uint8), after.tensor(name).view(torch.uint8)), name


@pytest.mark.parametrize(
    ("layout", "dtype", "options"),
    [
        ("release", "fp32", {"dtype": "fp32", "experts": "fp4"}),
        ("release", "bf16", {"dtype": "bf16", "experts": "fp4"}),
        ("release", "fp32", {"dtype": "fp32"}),
        ("release_fp8", "bf16", {"dtype": "bf16"}),
        ("bf16", "bf16", {"dtype": "bf16"}),
        ("fp32", "fp32", {"dtype": "fp32"}),
    ],
)
def test_there_and_back_keeps_every_value(
    save, tmp_path: Path, layout: str, dtype: str, options: dict[str, str]
) -> None:
    src, said = save(layout), []
    export_gguf(src, tmp_path / "m.gguf", dtype=dtype, report=said.append)
    convert(tmp_path / "m.gguf", tmp_path / "back", report=said.append, **options)
    assert not [sentence for sentence in said if "rounded" in sentence]
    report = check_folder(tmp_path / "back")
    assert report.ok, report.problems
    expected = _values(src)
    for name, value in _values(tmp_path / "back").items():
        assert torch.equal(value, expected.pop(name)), name
    assert not expected
    if layout in ("bf16", "fp32"):
        before, after = CheckpointReader(src), CheckpointReader(tmp_path / "back")
        assert all(before.spec(name) == after.spec(name) for name in after.names())


def test_q8_0_and_f16_are_read_without_loss_into_fp32(save, tmp_path: Path) -> None:
    """What the file holds is the truth here: the first import against a second export and import of it."""
    for dtype in ("q8_0", "f16"):
        export_gguf(save("bf16", f"{dtype}-source"), tmp_path / f"{dtype}.gguf", dtype=dtype, experts=dtype)
        said: list[str] = []
        convert(tmp_path / f"{dtype}.gguf", tmp_path / dtype, dtype="fp32", report=said.append)
        assert [sentence for sentence in said if "kept exactly" in sentence]
        assert not [sentence for sentence in said if "rounded" in sentence]
        export_gguf(tmp_path / dtype, tmp_path / f"{dtype}-2.gguf", dtype="fp32", report=said.append)
        convert(tmp_path / f"{dtype}-2.gguf", tmp_path / f"{dtype}-2", dtype="fp32")
        first, second = _values(tmp_path / dtype), _values(tmp_path / f"{dtype}-2")
        assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_rounding_is_reported_both_ways(save, tmp_path: Path) -> None:
    said: list[str] = []
    export_gguf(save("fp32"), tmp_path / "m.gguf", dtype="f16", experts="q8_0", report=said.append)
    convert(tmp_path / "m.gguf", tmp_path / "back", report=said.append)
    told = "\n".join(said)
    for form in ("F16", "Q8_0", "GGUF Q8_0"):
        assert f"weights stored as {form}: " in told
    assert "the prediction block (mtp.*) is left out" in told
    assert "no tokenizer.json: llama.cpp and flyweight load the file and fail at the first text" in told


def test_the_config_comes_back(tiny: ModelConfig, save, tmp_path: Path) -> None:
    export_gguf(save("bf16"), tmp_path / "m.gguf")
    assert open_gguf(tmp_path / "m.gguf").folder.config == tiny.without_prediction()
    assert shortest_decimal(struct.unpack("<f", struct.pack("<f", 1e-6))[0]) == 1e-6
    assert shortest_decimal(1e300) == 1e300


def test_a_random_folder_for_measuring_has_texts_for_other_engines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without them llama.cpp aborts and flyweight answers 500. Ids above the tokenizer's are padding."""
    few = {"hidden_size": 256, "num_attention_heads": 4, "head_dim": 64, "qk_rope_head_dim": 32, "q_lora_rank": 128}
    few |= {"o_groups": 2, "o_lora_rank": 128, "moe_intermediate_size": 128, "n_routed_experts": 8, "vocab_size": 4096}
    few |= {"index_n_heads": 4, "num_hash_layers": 1, "compress_ratios": [0, 4]}
    monkeypatch.setitem(SHAPES, "few", few)
    write_random("few", tmp_path / "few")
    said: list[str] = []
    export_gguf(tmp_path / "few", tmp_path / "few.gguf", report=said.append)
    assert not [sentence for sentence in said if "tokenizer" in sentence and "padding" not in sentence]
    texts = read_gguf(tmp_path / "few.gguf").metadata["tokenizer.ggml.tokens"]
    theirs = json.loads((NANO / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(texts) == 4096
    assert texts[theirs["e"]] == "e"
    assert texts[4095] == "[PAD4095]"


def test_the_tokenizer_comes_back(nano_file: Path) -> None:
    source = open_gguf(nano_file)
    assert source.tokenizer == json.loads((NANO / "tokenizer.json").read_text())
    assert source.bytes_by_type().keys() == {"MXFP4", "Q8_0", "BF16", "F32", "I32"}


def test_the_package_gguf_reads_our_files(nano_file: Path) -> None:
    gguf = pytest.importorskip("gguf")
    theirs, ours = gguf.GGUFReader(nano_file), read_gguf(nano_file)
    assert {t.name: (t.n_bytes, t.data_offset) for t in theirs.tensors} == {
        name: (tensor.end - tensor.begin, tensor.begin) for name, tensor in ours.tensors.items()
    }
    for key, value in ours.metadata.items():
        assert theirs.get_field(key).contents() == value


def test_a_file_in_parts_is_opened_by_any(nano_file: Path, tmp_path: Path) -> None:
    whole, data = read_gguf(nano_file), nano_file.read_bytes()
    names, keys = list(whole.tensors), {key: _encodable(value) for key, value in whole.metadata.items()}
    for part, (own, metadata) in enumerate(((names[:100], keys), (names[100:], {})), 1):
        tensors = {name: (whole.tensors[name].type, whole.tensors[name].shape) for name in own}
        header, offsets = encode_gguf_header(metadata, tensors)
        content = bytearray(header)
        for name in own:
            content += b"\0" * (offsets[name] - len(content))
            content += data[whole.tensors[name].begin : whole.tensors[name].end]
        (tmp_path / f"m-0000{part}-of-00002.gguf").write_bytes(content)
    convert(nano_file, tmp_path / "whole", dtype="fp32")
    convert(tmp_path / "m-00002-of-00002.gguf", tmp_path / "parts", dtype="fp32")
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "parts" / file.name).read_bytes(), file.name
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(CheckpointError, match=r"one of 2 parts; missing beside it: m-00002-of-00002\.gguf"):
        open_gguf(tmp_path / "m-00001-of-00002.gguf")


def test_what_f16_cannot_hold_is_an_error(save, tmp_path: Path) -> None:
    name = "layers.2.ffn.experts.1.w2.weight"
    src = rewrite(save("fp32"), lambda tensors: tensors[name].mul_(1e8))
    with pytest.raises(CheckpointError, match=rf"'{name}': holds .*, which F16 cannot"):
        export_gguf(src, tmp_path / "m.gguf", dtype="f16")
    assert not list(tmp_path.glob("m.gguf*"))


def test_combinations_that_no_file_has(save, tmp_path: Path) -> None:
    src = save("release")
    with pytest.raises(ValueError, match="dtype must be one of q8_0, f16, bf16, fp32"):
        export_gguf(src, tmp_path / "m.gguf", dtype="release")
    with pytest.raises(ValueError, match="experts must be one of fp4"):
        export_gguf(src, tmp_path / "m.gguf", experts="fp8")
    (tmp_path / "m.gguf").write_bytes(b"mine")
    with pytest.raises(CheckpointError, match="exists already"):
        export_gguf(src, tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == b"mine"


def test_an_import_goes_on_where_it_stopped(nano_file: Path, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(done: int, total: int, name: str) -> None:
        if done > total // 2:
            raise StopError

    with pytest.raises(StopError):
        convert(nano_file, tmp_path / "out", progress=stop)
    assert list((tmp_path / "out").glob("model-*.safetensors"))
    convert(nano_file, tmp_path / "out")
    convert(nano_file, tmp_path / "whole")
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes(), file.name
    assert check_folder(tmp_path / "out").ok


def test_mxfp4_is_what_the_file_says(nano_file: Path) -> None:
    tensors = read_gguf(nano_file).tensors
    assert {t.type for name, t in tensors.items() if name.endswith("_exps.weight")} == {MXFP4}
