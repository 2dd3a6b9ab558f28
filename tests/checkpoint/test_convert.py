"""Between layouts: exact where promised, resumable to the same bytes, never more than a tensor in memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsv4.checkpoint import (
    BASE,
    BF16,
    FP32,
    LAYOUTS,
    RELEASE,
    RELEASE_FP8,
    CheckpointError,
    CheckpointReader,
    Layout,
    check_folder,
    convert,
    open_folder,
    save_checkpoint,
    state_for,
)
from dsv4.checkpoint.convert import target_layout
from dsv4.checkpoint.inventory import INDEX_NAME, UNFINISHED_NAME
from dsv4.config import DSpark, ModelConfig
from dsv4.kernels import quant
from dsv4.testing.tiny import tiny_draft_config, tiny_model

TARGETS = {
    "release": {"dtype": "release", "experts": "fp4"},
    "release_fp8": {"dtype": "release", "experts": "fp8"},
    "base": {"dtype": "base"},
    "bf16": {"dtype": "bf16"},
    "fp32": {"dtype": "fp32"},
    "bf16_fp4": {"dtype": "bf16", "experts": "fp4"},
    "fp32_fp4": {"dtype": "fp32", "experts": "fp4"},
}
QUANTISED = ("release", "release_fp8", "base")


def _values(folder: Path) -> dict[str, Tensor]:
    return dict(state_for(ModelConfig.from_file(folder), CheckpointReader(folder), "fp32"))


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _assert_equal_values(first: Path, second: Path) -> None:
    expected = _values(second)
    for name, tensor in _values(first).items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("target", LAYOUTS)
def test_every_pair_of_layouts(save, tmp_path: Path, source: str, target: str) -> None:
    src = save(source)
    layout = convert(src, tmp_path / "out", **TARGETS[target])
    report = check_folder(tmp_path / "out")
    assert report.ok, report.problems
    assert report.layout == layout.name == target
    assert (tmp_path / "out" / "tokenizer_config.json").read_bytes() == b"{}"
    assert (tmp_path / "out" / "LICENSE").read_bytes() == b"MIT"
    assert not (tmp_path / "out" / UNFINISHED_NAME).exists()
    if source == target:
        assert _contents(tmp_path / "out") == _contents(src)
    elif source in QUANTISED and not (LAYOUTS[target].experts == "fp4" and source != "release"):
        _assert_equal_values(src, tmp_path / "out")  # everything but a new FP4 rounding is lossless


@pytest.mark.parametrize("target", ["release_fp8", "base", "bf16", "fp32"])
def test_there_and_back_keeps_the_values(save, tmp_path: Path, target: str) -> None:
    src = save("release")
    convert(src, tmp_path / "there", **TARGETS[target])
    convert(tmp_path / "there", tmp_path / "back", **TARGETS["release"])
    _assert_equal_values(src, tmp_path / "back")


def test_reference_folder_keeps_its_values_in_every_layout(reference_folder: Path, tmp_path: Path) -> None:
    src = reference_folder
    expected = _values(src)
    for target, options in TARGETS.items():
        convert(src, tmp_path / target, **options)
        assert check_folder(tmp_path / target).ok
        for name, tensor in _values(tmp_path / target).items():
            assert torch.equal(tensor, expected[name]), (target, name)


def test_scales_of_the_base_layout_are_float32(save, tmp_path: Path) -> None:
    convert(save("release_fp8"), tmp_path / "base", dtype="base")
    reader = CheckpointReader(tmp_path / "base")
    assert reader.spec("layers.1.ffn.experts.0.w1.scale").dtype == torch.float32
    assert convert(tmp_path / "base", tmp_path / "back") == RELEASE_FP8  # the source's experts are kept
    assert _contents(tmp_path / "back") == _contents(save("release_fp8", "again"))


def test_the_default_follows_the_source(save, tmp_path: Path) -> None:
    assert convert(save("bf16"), tmp_path / "out") == RELEASE
    for source in (RELEASE, RELEASE_FP8):
        assert target_layout(source, "release", None) == source
    assert target_layout(BF16, "base", None) == BASE
    assert target_layout(RELEASE, "bf16", "bf16") == BF16
    assert target_layout(RELEASE, "fp32", None) == FP32


@pytest.mark.parametrize(
    ("dtype", "experts"),
    [("base", "fp4"), ("release", "bf16"), ("bf16", "fp8"), ("fp32", "fp8"), ("int4", None)],
)
def test_combinations_without_a_layout(dtype: str, experts: str | None) -> None:
    with pytest.raises(ValueError, match="no layout has dtype"):
        target_layout(RELEASE, dtype, experts)  # type: ignore[arg-type]


def _damage(folder: Path, shard: int, change) -> None:
    file = folder / f"model-{shard:05d}-of-00007.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_what_cannot_be_lossless_is_an_error(save, tmp_path: Path) -> None:
    src = save("release")
    name = "layers.1.ffn.experts.2.w1"

    def widen(tensors: dict[str, Tensor]) -> None:
        tensors[f"{name}.weight"].fill_(0x11)
        tensors[f"{name}.scale"].fill_(1.0)
        tensors[f"{name}.scale"][3, 2] = 2.0**-20

    _damage(src, 3, widen)
    with pytest.raises(CheckpointError, match=r"00003-of-00007.*layers\.1\.ffn\.experts\.2\.w1\.weight.*2\^14"):
        convert(src, tmp_path / "out", experts="fp8")
    with pytest.raises(CheckpointError, match="unfinished conversion"):
        CheckpointReader(tmp_path / "out")
    base = save("base", "base")
    _damage(base, 3, lambda tensors: tensors["layers.1.attn.wkv.scale"].fill_(0.3))
    said: list[str] = []
    convert(base, tmp_path / "out2", report=said.append)  # scales that e8m0 does not have: the weight is rounded anew
    assert (
        "1 weights stored as FP8 with scales that are no powers of two: 0 kept exactly, the others rounded" in said[0]
    )
    assert 0 < float(said[0].split("relative error ")[1].split("%")[0]) < 4


class _Stop(Exception):
    """Stands for whatever ends a run: a signal, a full disk."""


def _stop_after(name: str):
    def progress(done: int, total: int, current: str) -> None:
        assert 0 < done <= total
        if current == name:
            raise _Stop

    return progress


@pytest.mark.parametrize("source", ["release", "bf16"])
@pytest.mark.parametrize(
    "last",
    ["embed.weight", "layers.0.hc_ffn_scale", "layers.2.ffn.experts.1.w2.weight", "mtp.0.hc_head_scale"],
)
def test_an_interrupted_run_continues_to_the_same_bytes(save, tmp_path: Path, source: str, last: str) -> None:
    src, out = save(source), tmp_path / "out"
    convert(src, tmp_path / "whole", dtype="base")
    with pytest.raises(_Stop):
        convert(src, out, dtype="base", progress=_stop_after(last))
    with pytest.raises(CheckpointError, match="unfinished conversion"):
        CheckpointReader(out)
    assert not check_folder(out).ok
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    (out / ".model-00003-of-00007.safetensors.tmp").write_bytes(b"left by a killed process")
    convert(src, out, dtype="base")
    assert _contents(out) == _contents(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_a_stop_between_index_and_marker_is_completed(save, tmp_path: Path) -> None:
    src, out = save("release"), tmp_path / "out"
    with pytest.raises(_Stop):
        convert(src, out, progress=_stop_after("mtp.0.hc_head_scale"))
    (out / INDEX_NAME).write_text("{}")
    convert(src, out)
    assert check_folder(out).ok


def test_a_damaged_finished_shard_is_written_again(save, tmp_path: Path) -> None:
    src, out = save("release"), tmp_path / "out"
    with pytest.raises(_Stop):
        convert(src, out, progress=_stop_after("mtp.0.hc_head_scale"))
    shard = out / "model-00002-of-00007.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    convert(src, out)
    assert _contents(out) == _contents(src)


def test_another_unfinished_conversion_is_not_mixed_in(save, tmp_path: Path) -> None:
    src, out = save("release"), tmp_path / "out"
    with pytest.raises(_Stop):
        convert(src, out, dtype="base", progress=_stop_after("layers.0.hc_ffn_scale"))
    with pytest.raises(CheckpointError, match=r"of another source or layout.*--no-resume"):
        convert(src, out, dtype="bf16")
    convert(src, out, dtype="bf16", resume=False)
    assert check_folder(out).layout == "bf16"


def test_targets_that_are_not_ours(save, tmp_path: Path) -> None:
    src = save("release")
    with pytest.raises(ValueError, match="another folder"):
        convert(src, src)
    with pytest.raises(CheckpointError, match="is not an empty folder"):
        convert(src, save("bf16", "other"))
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is not an empty folder"):
        convert(src, tmp_path / "file")
    (src / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        convert(src, tmp_path / "out")


def test_incomplete_sources_are_refused_before_anything_is_written(save, tmp_path: Path) -> None:
    src = save("release")
    (src / "model-00004-of-00007.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00004-of-00007.*missing"):
        convert(src, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_draft_head_is_saved_converted_and_loaded(layout: str, tmp_path: Path) -> None:
    """Every layout holds it; what comes back from bf16 is what was saved, and the file can be left without it."""
    config = tiny_draft_config(hidden_size=128, moe_intermediate_size=64)
    state = {name: value.bfloat16().float() for name, value in tiny_model(config).state_dict().items()}
    state |= {name: value.long() for name, value in state.items() if name.endswith("tid2eid")}
    save_checkpoint(tmp_path / "src", config, state, BF16)
    convert(tmp_path / "src", tmp_path / "out", **TARGETS[layout])  # type: ignore[arg-type]
    assert check_folder(tmp_path / "out").ok
    assert check_folder(tmp_path / "out").notes == ()
    read = ModelConfig.from_file(tmp_path / "out")
    assert read.dspark == config.dspark
    reader = CheckpointReader(tmp_path / "out")
    loaded = dict(state_for(read, reader, "fp32"))
    assert loaded.keys() == state.keys()
    if layout in ("bf16", "fp32"):  # nothing is quantised
        assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert ("mtp.0.main_proj.scale" in reader) == (layout in QUANTISED)
    for name in ("markov_head.markov_w1", "markov_head.markov_w2", "confidence_head.proj"):
        assert torch.equal(loaded[f"mtp.1.{name}.weight"], state[f"mtp.1.{name}.weight"])
    assert not any(name.startswith("mtp.") for name, _ in state_for(read.without_prediction(), reader, mtp=False))


def test_announced_draft_stages_that_are_not_there(save) -> None:
    src = save("release")
    raw = json.loads((src / "config.json").read_text())
    (src / "config.json").write_text(json.dumps(raw | DSpark(1, 5, 2, 16, (1,)).to_dict()))
    opened = open_folder(src)
    assert opened.config.dspark is None
    assert "mtp.* does not hold the draft stages" in opened.notes[0]


_MEASURE = """
import sys, threading, time, torch
from dsv4.checkpoint import convert

def private_bytes():
    with open('/proc/self/status') as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith('RssAnon'))

torch.set_num_threads(1)
convert(sys.argv[1], sys.argv[3], dtype=sys.argv[5])
base, peak, running = private_bytes(), 0, True

def watch():
    global peak
    while running:
        peak = max(peak, private_bytes())
        time.sleep(0.001)

thread = threading.Thread(target=watch)
thread.start()
convert(sys.argv[2], sys.argv[4], dtype=sys.argv[5])
running = False
thread.join()
print(peak - base)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("dtype", ["fp32", "base"])
def test_peak_memory_is_about_one_tensor(save, tmp_path: Path, tiny: ModelConfig, dtype: str) -> None:
    """The largest tensor is 2 MiB in float32; the folder is 40 times that or more."""
    wide = tiny.with_changes(
        hidden_size=1024,
        moe_intermediate_size=512,
        n_routed_experts=8,
        vocab_size=512,
        quantized=True,
        expert_dtype="fp4",
    )
    big = tmp_path / "big"
    _write_random(big, wide)
    script = [
        sys.executable,
        "-c",
        _MEASURE,
        str(save("release")),
        str(big),
        str(tmp_path / "warm"),
        str(tmp_path / "out"),
    ]
    done = subprocess.run([*script, dtype], capture_output=True, text=True, check=True, timeout=60)
    written = check_folder(tmp_path / "out")
    assert written.ok
    assert int(done.stdout) < 20 * 2**20 < written.bytes / 3


def _write_random(folder: Path, config: ModelConfig, layout: Layout = RELEASE) -> None:
    """A release-layout folder of random bytes, made without quantising anything."""
    from dsv4.checkpoint import CheckpointWriter, expected_tensors, shard_of

    plan = expected_tensors(config, layout)
    with CheckpointWriter(folder, plan, lambda name: shard_of(name, config)) as writer:
        for name, spec in plan.items():
            if spec.dtype in (torch.float8_e8m0fnu, torch.int8):
                value = torch.full(spec.shape, 120, dtype=torch.uint8).view(spec.dtype)
            else:
                value = torch.rand(spec.shape).to(spec.dtype)
            writer.write(name, value)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))


def test_random_bytes_are_dequantised_alike(tmp_path: Path, tiny: ModelConfig) -> None:
    config = tiny.with_changes(quantized=True, expert_dtype="fp4")
    _write_random(tmp_path / "in", config)
    convert(tmp_path / "in", tmp_path / "out", dtype="bf16")
    name = "layers.2.ffn.experts.3.w2"
    source = CheckpointReader(tmp_path / "in")
    expected = quant.dequantize_fp4_weight(source.tensor(f"{name}.weight"), source.tensor(f"{name}.scale"))
    assert torch.equal(CheckpointReader(tmp_path / "out").tensor(f"{name}.weight").float(), expected)
