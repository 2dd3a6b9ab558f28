"""Writing: bit for bit what was given, whole files only, index last."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsv4.checkpoint import (
    BF16,
    LAYOUTS,
    RELEASE,
    CheckpointError,
    CheckpointReader,
    CheckpointWriter,
    TensorSpec,
    check_folder,
    quantize_state,
    save_checkpoint,
    shards_by_size,
)
from dsv4.checkpoint.inventory import INDEX_NAME
from dsv4.config import ModelConfig
from dsv4.kernels import quant


def _plan(tensors: dict[str, Tensor]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def _rewrite(source: Path, target: Path, max_bytes: int = 1 << 40) -> None:
    reader = CheckpointReader(source)
    plan = {name: reader.spec(name) for name in reader.names()}
    with CheckpointWriter(target, plan, shards_by_size(plan, max_bytes)) as writer:
        for name in reversed(reader.names()):
            writer.write(name, reader.tensor(name))


def _assert_same_tensors(first: Path, second: Path) -> None:
    a, b = CheckpointReader(first), CheckpointReader(second)
    assert set(a.names()) == set(b.names())
    for name in a.names():
        assert a.spec(name) == b.spec(name), name
        left, right = (x.tensor(name).reshape(-1).view(torch.uint8) for x in (a, b))
        assert torch.equal(left, right), name


def test_reference_folder_comes_back_as_the_same_file(reference_folder: Path, tmp_path: Path) -> None:
    source = reference_folder
    _rewrite(source, tmp_path / "copy")
    name = "model-00001-of-00001.safetensors"
    assert (tmp_path / "copy" / name).read_bytes() == (source / name).read_bytes()
    index = json.loads((tmp_path / "copy" / INDEX_NAME).read_text())
    assert index == json.loads((source / INDEX_NAME).read_text())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("max_bytes", [1, 20_000, 1 << 40])
def test_round_trip_is_bitwise(save, tmp_path: Path, layout: str, max_bytes: int) -> None:
    source = save(layout, max_shard_bytes=max_bytes if max_bytes > 1 else None)
    _rewrite(source, tmp_path / "copy", max_bytes)
    _assert_same_tensors(source, tmp_path / "copy")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_folders_are_complete(save, layout: str, tiny: ModelConfig) -> None:
    folder = save(layout)
    report = check_folder(folder)
    assert report.ok, report.problems
    assert report.layout == layout
    assert report.files == 7
    assert (folder / "tokenizer_config.json").read_bytes() == b"{}"
    config = ModelConfig.from_file(folder)
    assert config.with_changes(quantized=False, expert_dtype=None) == tiny
    assert not list(folder.glob(".*"))
    loaded = load_file(folder / "model-00002-of-00007.safetensors")  # the library reads it too
    assert "layers.0.attn.wq_a.weight" in loaded


def test_saved_weights_are_the_quantised_state(save, float_state: dict[str, Tensor]) -> None:
    reader = CheckpointReader(save("release"))
    expert, linear = "layers.2.ffn.experts.1.w2.weight", "layers.2.attn.wo_b.weight"
    packed, _ = quant.quantize_fp4_weight(float_state[expert])
    assert torch.equal(reader.tensor(expert), packed)
    w8, scale = quant.quantize_fp8_weight(float_state[linear])
    assert torch.equal(reader.tensor(linear).view(torch.uint8), w8.view(torch.uint8))
    assert torch.equal(reader.tensor(linear.replace("weight", "scale")).view(torch.uint8), scale.view(torch.uint8))
    assert torch.equal(reader.tensor("embed.weight"), float_state["embed.weight"].to(torch.bfloat16))


def test_what_does_not_fit_the_model_is_refused(
    tmp_path: Path, tiny: ModelConfig, float_state: dict[str, Tensor]
) -> None:
    with pytest.raises(CheckpointError, match=r"no parameter 'norm\.bias'"):
        list(quantize_state([("norm.bias", torch.ones(1))], tiny, BF16))
    with pytest.raises(CheckpointError, match=r"'norm\.weight' should have shape \[256\], got \[1\]"):
        list(quantize_state([("norm.weight", torch.ones(1))], tiny, BF16))
    with pytest.raises(CheckpointError, match="tid2eid' should be int64"):
        list(quantize_state([("layers.0.ffn.gate.tid2eid", torch.ones(96, 2))], tiny, BF16))
    bad = {"layers.0.attn.wkv.weight": torch.full((64, 256), torch.nan)}
    with pytest.raises(CheckpointError, match=r"'layers\.0\.attn\.wkv\.weight'.*NaN"):
        list(quantize_state(bad.items(), tiny, RELEASE))
    partial = {name: value for name, value in float_state.items() if name != "norm.weight"}
    with pytest.raises(CheckpointError, match=r"1 tensors were not written: norm\.weight"):
        save_checkpoint(tmp_path / "partial", tiny, partial)
    assert not (tmp_path / "partial" / INDEX_NAME).exists()
    with pytest.raises(ValueError, match="plain file names"):
        save_checkpoint(tmp_path / "extra", tiny, float_state, extra_files={"../evil": b""})


def test_a_complete_checkpoint_is_never_overwritten(save, tiny: ModelConfig, float_state) -> None:
    folder = save("bf16")
    with pytest.raises(CheckpointError, match="already holds a checkpoint"):
        save_checkpoint(folder, tiny, float_state)


def test_writer_refuses_what_is_not_planned(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.int8)}
    writer = CheckpointWriter(tmp_path, _plan(tensors), lambda _: 1)
    for name, tensor, text in [
        ("c", tensors["a"], "'c' is not in the plan"),
        ("a", tensors["a"].T, r"'a' should be F32 \[2, 3\], got F32 \[3, 2\]"),
        ("a", tensors["a"].double(), "'a' should be F32"),
    ]:
        with pytest.raises(CheckpointError, match=text):
            writer.write(name, tensor)
    writer.write("a", tensors["a"])
    with pytest.raises(CheckpointError, match="already written"):
        writer.write("a", tensors["a"])
    with pytest.raises(CheckpointError, match="1 tensors were not written: b"):
        writer.finish()
    writer.abort()
    assert not list(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="nothing to write"):
        CheckpointWriter(tmp_path, {}, lambda _: 1)
    with pytest.raises(ValueError, match="without gaps"):
        CheckpointWriter(tmp_path, _plan(tensors), {"a": 1, "b": 3}.__getitem__)
    with pytest.raises(ValueError, match="max_bytes"):
        shards_by_size(_plan(tensors), 0)


def test_odd_tensors_are_written_as_they_are(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "strided": torch.arange(12.0).reshape(3, 4).T,
        "grad": torch.ones(2, requires_grad=True),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "größe": torch.ones(1, dtype=torch.float16),
        "flags": torch.tensor([True, False]),
    }
    with CheckpointWriter(tmp_path, _plan(tensors), lambda _: 1) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    loaded = load_file(tmp_path / "model-00001-of-00001.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor.detach())


def test_failure_leaves_no_half_written_file(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2)}
    writer = CheckpointWriter(tmp_path, _plan(tensors), {"a": 1, "b": 2, "c": 2}.__getitem__)

    def write_until_it_fails() -> None:
        with writer:
            for name in ("a", "b", "unknown"):
                writer.write(name, torch.ones(2))

    with pytest.raises(CheckpointError, match="not in the plan"):
        write_until_it_fails()
    assert [path.name for path in tmp_path.iterdir()] == ["model-00001-of-00002.safetensors"]
    kept = CheckpointWriter(tmp_path, _plan(tensors), {"a": 1, "b": 2, "c": 2}.__getitem__, keep_finished=True)
    assert kept.finished == {"a"}
    other = tensors | {"a": torch.ones(3)}
    renewed = CheckpointWriter(tmp_path, _plan(other), {"a": 1, "b": 2, "c": 2}.__getitem__, keep_finished=True)
    assert renewed.finished == set()


def test_shards_fill_up_to_the_limit() -> None:
    plan = {name: TensorSpec(torch.int8, (size,)) for name, size in zip("abcde", (4, 4, 20, 1, 8), strict=True)}
    shard = shards_by_size(plan, 8)
    assert [shard(name) for name in plan] == [1, 1, 2, 3, 4]


def test_a_file_of_the_library_and_ours_are_the_same_bytes(tmp_path: Path) -> None:
    tensors = {
        "z": torch.randn(3).to(torch.bfloat16),
        "a": torch.randn(2, 2),
        "m": torch.randn(3).to(torch.float8_e4m3fn),
        "n": torch.ones(3).to(torch.float8_e8m0fnu),
        "i": torch.arange(2),
        "k": torch.arange(3, dtype=torch.int8),
    }
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    with CheckpointWriter(tmp_path / "ours", _plan(tensors), lambda _: 1) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    ours = (tmp_path / "ours" / "model-00001-of-00001.safetensors").read_bytes()
    assert ours == (tmp_path / "theirs.safetensors").read_bytes()
