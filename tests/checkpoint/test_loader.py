"""From files to a model's state: dtypes of each mode, exact values, and refusals."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dsv4.checkpoint import LAYOUTS, CheckpointError, CheckpointReader, load_into, parameters, state_for
from dsv4.checkpoint.inventory import INDEX_NAME
from dsv4.config import Mode, ModelConfig

E4M3, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu
FP32, BF16 = torch.float32, torch.bfloat16


def _state(folder: Path, mode: Mode, **options: bool) -> dict[str, Tensor]:
    return dict(state_for(ModelConfig.from_file(folder), CheckpointReader(folder), mode, **options))


@pytest.mark.parametrize(
    ("mode", "dtypes"),
    [
        ("fp32", {"wq_a": FP32, "wo_a": FP32, "expert": FP32, "embed": FP32, "wide": FP32}),
        ("bf16", {"wq_a": BF16, "wo_a": BF16, "expert": BF16, "embed": BF16, "wide": BF16}),
        ("release", {"wq_a": E4M3, "wo_a": BF16, "expert": torch.int8, "embed": BF16, "wide": BF16}),
    ],
)
def test_each_mode_gives_its_dtypes(save, mode: Mode, dtypes: dict[str, torch.dtype]) -> None:
    state = _state(save("release"), mode)
    assert state["layers.1.attn.wq_a.weight"].dtype == dtypes["wq_a"]
    assert state["layers.1.attn.wo_a.weight"].dtype == dtypes["wo_a"]
    assert state["layers.1.ffn.experts.2.w2.weight"].dtype == dtypes["expert"]
    assert state["embed.weight"].dtype == dtypes["embed"]
    assert state["layers.1.attn.indexer.weights_proj.weight"].dtype == dtypes["embed"]
    for name in (
        "norm.weight",
        "hc_head_fn",
        "layers.0.attn.attn_sink",
        "layers.0.attn.q_norm.weight",
        "layers.1.ffn.gate.bias",
        "layers.2.attn.compressor.ape",
        "mtp.0.enorm.weight",
    ):
        assert state[name].dtype == FP32, name
    for name in (
        "head.weight",
        "layers.1.ffn.gate.weight",
        "layers.2.attn.compressor.wkv.weight",
        "layers.1.attn.indexer.compressor.wgate.weight",
    ):  # products in float32, kept as they are stored
        assert state[name].dtype == dtypes["wide"], name
    assert state["layers.0.ffn.gate.tid2eid"].dtype == torch.int64
    scales = [name for name in state if name.endswith(".scale")]
    assert bool(scales) == (mode == "release")
    assert "layers.1.attn.wo_a.scale" not in state
    if mode == "release":
        assert state["layers.1.attn.wq_a.scale"].dtype == E8M0
        assert len(state) == len(CheckpointReader(save("release", "again")).names()) - 5  # wo_a's scales


def test_release_mode_keeps_the_stored_bits(save) -> None:
    folder = save("release")
    reader = CheckpointReader(folder)
    for name, tensor in _state(folder, "release").items():
        if tensor.dtype in (E4M3, E8M0, torch.int8):
            assert torch.equal(tensor.view(torch.uint8), reader.tensor(name).view(torch.uint8))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["fp32", "bf16", "release"])
def test_every_layout_loads_in_every_mode(save, layout: str, mode: Mode, tiny: ModelConfig) -> None:
    folder = save(layout)
    state = _state(folder, mode)
    weights = [name for name in state if not name.endswith(".scale")]
    assert weights == [parameter.name for parameter in parameters(tiny)]
    reader = CheckpointReader(folder)
    for name in weights:
        if mode != "release" and state[name].is_floating_point():
            assert torch.equal(state[name], reader.dequantized(name, FP32).to(state[name].dtype)), name


def test_fp32_layout_is_the_saved_state(save, float_state: dict[str, Tensor]) -> None:
    for name, tensor in _state(save("fp32"), "fp32").items():
        assert torch.equal(tensor, float_state[name])


def test_dequantised_values_are_exact_in_bfloat16(save) -> None:
    folder = save("release")
    wide, narrow = _state(folder, "fp32"), _state(folder, "bf16")
    for name, tensor in narrow.items():
        assert torch.equal(tensor.to(FP32), wide[name].to(FP32)), name


def _rewrite(folder: Path, change) -> CheckpointReader:
    """One file without index, its tensors changed by `change`."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model-*.safetensors")):
        tensors |= load_file(file)
        file.unlink()
    (folder / INDEX_NAME).unlink()
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return CheckpointReader(folder)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("norm.weight", None, r"tensor 'norm\.weight' is missing"),
        (
            "layers.1.attn.wq_a.scale",
            None,
            r"'layers\.1\.attn\.wq_a\.weight'.*has no 'layers\.1\.attn\.wq_a\.scale'",
        ),
        ("layers.9.attn_norm.weight", torch.ones(2), r"unknown tensor 'layers\.9\.attn_norm\.weight'"),
        ("norm.scale", torch.ones(2), r"unknown tensor 'norm\.scale'"),
        ("norm.weight", torch.ones(255), r"'norm\.weight' should be BF16 \[256\], is F32 \[255\]"),
        ("norm.weight", torch.ones(256, dtype=torch.int64), r"'norm\.weight' should be"),
        ("layers.0.ffn.gate.tid2eid", torch.ones(96, 2), r"tid2eid' should be I64 \[96, 2\], is F32"),
        (
            "layers.1.attn.wq_a.weight",
            torch.ones(1, 1).to(E4M3),
            r"wq_a\.weight' should be F8_E4M3 \[96, 256\]",
        ),
        (
            "layers.1.attn.wq_a.scale",
            torch.ones(1, 1),
            r"wq_a\.scale' should be F8_E8M0 \[1, 2\], is F32 \[1, 1\]",
        ),
        (
            "mtp.0.ffn.experts.0.w1.scale",
            torch.ones(96, 8, dtype=torch.int32),
            r"w1\.scale' should be F8_E8M0 \[96, 8\], is I32",
        ),
    ],
)
def test_what_does_not_fit_is_named(save, tiny: ModelConfig, name: str, value: Tensor | None, text: str) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value

    reader = _rewrite(save("release"), change)
    with pytest.raises(CheckpointError, match=text):
        state_for(tiny, reader, "bf16")


def test_many_problems_are_counted(save, tiny: ModelConfig) -> None:
    reader = CheckpointReader(save("release"))
    deeper = tiny.with_changes(num_hidden_layers=5, compress_ratios=(0, 4, 128, 4, 4, 0))
    with pytest.raises(CheckpointError, match=r"'layers\.4\.attn\.attn_sink' is missing;.*and \d+ more") as caught:
        state_for(deeper, reader)
    assert len(str(caught.value)) < 1500
    with pytest.raises(ValueError, match="mode must be"):
        state_for(tiny, reader, "int4")  # type: ignore[arg-type]


def test_the_prediction_block_can_be_left_out(save, tiny: ModelConfig) -> None:
    folder = save("release")
    reader = CheckpointReader(folder)
    assert not any(name.startswith("mtp.") for name in _state(folder, "bf16", mtp=False))
    plain = tiny.with_changes(num_nextn_predict_layers=0, compress_ratios=tiny.compress_ratios[:4])
    assert not any(name.startswith("mtp.") for name, _ in state_for(plain, reader))


class _Holder(nn.Module):
    """A module tree with the given parameter names, on the meta device."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in state.items():
            *path, leaf = name.split(".")
            module: nn.Module = self
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.register_buffer(leaf, tensor.to("meta"))


@pytest.mark.parametrize("mode", ["fp32", "release"])
def test_load_into_a_model(save, tiny: ModelConfig, mode: Mode) -> None:
    folder = save("release")
    state = _state(folder, mode)
    model = _Holder(state)
    load_into(model, tiny, CheckpointReader(folder), mode)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor.view(torch.uint8), state[name].view(torch.uint8))
    model.register_buffer("extra", torch.ones(1))
    del model.hc_head_fn
    with pytest.raises(CheckpointError, match=r"the model has no 'hc_head_fn'.*no tensor for the model's 'extra'"):
        load_into(model, tiny, CheckpointReader(folder), mode)


def test_reference_checkpoint_loads(reference_folder: Path, tmp_path: Path) -> None:
    folder = reference_folder
    state = _state(folder, "fp32")
    assert len(state) == {"flash_like": 535, "tiny_release": 119}[folder.name]
    assert all(tensor.isfinite().all() for tensor in state.values())
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match="no safetensors files"):
        CheckpointReader(tmp_path)


def test_a_table_that_names_no_expert_is_refused(save) -> None:
    folder = save("bf16")
    config = ModelConfig.from_file(folder)
    name = "layers.0.ffn.gate.tid2eid"
    file = CheckpointReader(folder).file_of(name)
    tensors = load_file(file)
    tensors[name] = torch.full_like(tensors[name], config.n_routed_experts)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=rf"{name}.* names experts {config.n_routed_experts}"):
        dict(state_for(config, CheckpointReader(folder), "fp32"))
