"""The name table against the released tensor lists."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from dsv4.checkpoint import (
    BASE,
    LAYOUTS,
    RELEASE,
    CheckpointError,
    Storage,
    expected_tensors,
    parameters,
    shard_of,
)
from dsv4.config import DSpark, ModelConfig

# tensors, bytes, parameters without and with the prediction block's, shards (spec: checkpoint.md section 2)
RELEASED = {
    "flash": (69_187, 159_609_485_896, 284.332, 6.610, 46),
    "pro": (145_116, 864_704_792_696, 1_572.997, 25.840, 64),
}
OTHER_EXPERTS = re.compile(r"experts\.[1-9]\d*\.")


@pytest.mark.parametrize("model", RELEASED)
def test_the_table_is_the_released_list(reference_data: Path, model: str) -> None:
    config = ModelConfig.from_file(reference_data / "configs" / f"{model}_hf_config.json")
    expected = expected_tensors(config, RELEASE)
    released = json.loads((reference_data / "configs" / f"{model}_release_tensors_expert0_only.json").read_text())
    # expert 0 stands for all of them; names, order, dtypes and shapes
    ours = [(name, str(spec)) for name, spec in expected.items() if not OTHER_EXPERTS.search(name)]
    assert ours == [(name, f"{dtype} {shape}") for name, (dtype, shape) in released.items()]
    for name, spec in expected.items():
        if OTHER_EXPERTS.search(name):
            assert spec == expected[OTHER_EXPERTS.sub("experts.0.", name)]
    tensors, size, main, prediction, shards = RELEASED[model]
    assert len(expected) == tensors
    assert sum(spec.nbytes for spec in expected.values()) == size
    assert {shard_of(name, config) for name in expected} == set(range(1, shards + 1))
    counts = {True: 0, False: 0}
    for parameter in parameters(config):
        if parameter.storage is not Storage.TABLE:
            counts[parameter.name.startswith("mtp.")] += math.prod(parameter.shape)
    assert round(counts[False] / 1e9, 3) == main
    assert round(counts[True] / 1e9, 3) == prediction


@pytest.mark.parametrize(("model", "gib"), [("flash", 272.5), ("pro", 1492.3)])
def test_base_layout_has_the_known_size(reference_data: Path, model: str, gib: float) -> None:
    config = ModelConfig.from_file(reference_data / "configs" / f"{model}_hf_config.json")
    expected = expected_tensors(config, BASE)
    assert round(sum(spec.nbytes for spec in expected.values()) / 2**30, 1) == gib
    assert expected["layers.3.ffn.experts.5.w1.scale"].dtype == torch.float32
    assert list(expected) == list(expected_tensors(config, RELEASE))


def test_shards_follow_the_release(tiny: ModelConfig) -> None:
    places = {
        "embed.weight": 1,
        "layers.0.attn.wq_a.scale": 2,
        "layers.3.hc_ffn_fn": 5,
        "mtp.0.enorm.weight": 7,
    }
    places |= dict.fromkeys(("norm.weight", "head.weight", "hc_head_fn"), 6)
    assert {name: shard_of(name, tiny) for name in places} == places


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_a_tiny_model(tiny: ModelConfig, layout: str) -> None:
    expected = expected_tensors(tiny, LAYOUTS[layout])
    scales = [name for name in expected if name.endswith(".scale")]
    assert bool(scales) == (layout not in ("bf16", "fp32"))
    assert expected["layers.0.ffn.gate.tid2eid"].dtype == torch.int64
    assert "layers.0.ffn.gate.bias" not in expected
    assert "layers.1.ffn.gate.tid2eid" not in expected
    float_dtype = torch.float32 if layout in ("fp32", "fp32_fp4") else torch.bfloat16
    for name in ("norm.weight", "embed.weight", "layers.1.attn.compressor.wkv.weight"):
        assert expected[name].dtype == float_dtype
    for name in (
        "hc_head_fn",
        "layers.0.attn.attn_sink",
        "layers.2.attn.compressor.ape",
        "mtp.0.ffn.gate.bias",
    ):
        assert expected[name].dtype == torch.float32
    expert = expected["mtp.0.ffn.experts.3.w2.weight"]
    assert expert.shape == (256, 48 if LAYOUTS[layout].experts == "fp4" else 96)


def test_fp4_needs_whole_blocks(tiny: ModelConfig) -> None:
    with pytest.raises(CheckpointError, match=r"experts\.0\.w2\.weight.*multiple of 32"):
        expected_tensors(tiny.with_changes(moe_intermediate_size=48), RELEASE)


# of the final weights (0731, 0813): tensors, bytes, then those of the three draft stages alone
FINALS = {
    "flash": (72_317, 166_878_536_440, 4_705, 10_862_838_300),
    "pro": (149_782, 892_727_580_904, 7_009, 41_979_375_900),
}


@pytest.mark.parametrize("model", FINALS)
def test_the_final_weights_are_counted_to_the_byte(model: str, reference_data: Path) -> None:
    config = ModelConfig.from_file(reference_data / "configs" / f"{model}_hf_config.json").without_prediction()
    top = config.num_hidden_layers
    head = DSpark(3, 5, 128799, 512 if model == "pro" else 256, (top - 3, top - 2, top - 1))
    config = config.with_changes(dspark=head, compress_ratios=(*config.compress_ratios, 0, 0, 0))
    expected = expected_tensors(config, RELEASE)
    draft = [spec.nbytes for name, spec in expected.items() if name.startswith("mtp.")]
    total = sum(spec.nbytes for spec in expected.values())
    assert (len(expected), total, len(draft), sum(draft)) == FINALS[model]
    assert {shard_of(name, config) for name in expected if name.startswith("mtp.")} == {top + 3, top + 4, top + 5}
