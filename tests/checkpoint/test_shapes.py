"""Sizes that a layout or the release's numerics cannot hold are told before anything is loaded or written."""

from pathlib import Path

import pytest

import dsv4
from dsv4.checkpoint import BASE, BF16, LAYOUTS, RELEASE, check_shapes, save_checkpoint, shape_problems
from dsv4.checkpoint.names import stored
from dsv4.parameters import Parameter, Role, Storage
from dsv4.testing.tiny import tiny_config, tiny_model


def test_what_fits_has_no_problem() -> None:
    for layout in LAYOUTS.values():
        assert shape_problems(tiny_config(), layout=layout, release_numerics=True) == ()
    check_shapes(tiny_config(), layout=RELEASE, release_numerics=True)


@pytest.mark.parametrize("dim", [16, 32, 64])
def test_the_indexer_needs_whole_fp4_blocks(dim: int) -> None:
    config = tiny_config(index_head_dim=dim)
    problems = shape_problems(config, release_numerics=True)
    assert bool(problems) == (dim % 32 != 0)
    assert shape_problems(config) == ()
    if problems:
        assert problems[0].startswith("index_head_dim must be a multiple of 32 in release numerics and for qat_from")
        assert problems[0].endswith("got 16")


def test_without_an_indexer_its_size_does_not_matter() -> None:
    config = tiny_config(index_head_dim=16, compress_ratios=(0, 0, 128, 0, 0))
    assert shape_problems(config, release_numerics=True) == ()


@pytest.mark.parametrize("field", ["hidden_size", "moe_intermediate_size"])
def test_fp4_experts_need_whole_blocks(field: str, tmp_path: Path) -> None:
    config = tiny_config(**{field: 48})
    assert shape_problems(config, layout=BF16) == shape_problems(config, layout=BASE) == ()
    with pytest.raises(ValueError, match=f"{field} must be a multiple of 32 in layout release .*, got 48"):
        save_checkpoint(tmp_path / "m", config, iter(()), RELEASE)
    assert not (tmp_path / "m").exists()


def test_load_refuses_release_mode_before_the_first_request(tmp_path: Path) -> None:
    config = tiny_config(index_head_dim=16, max_position_embeddings=2048)
    save_checkpoint(tmp_path / "m", config, tiny_model(config).state_dict(), RELEASE)
    with pytest.raises(ValueError, match="index_head_dim must be a multiple of 32 in release numerics"):
        dsv4.load(tmp_path / "m", "release")


@pytest.mark.parametrize(
    ("shape", "precision"),
    [
        ((128, 256), "F8_E4M3"),
        ((96, 64), "F8_E4M3"),  # one tile: every reader sees the same
        ((192, 128), "BF16"),  # 128 + 64 here, 96 + 96 in transformers
        ((128, 320), "BF16"),
        ((129, 128), "BF16"),
    ],
)
def test_a_linear_whose_tiles_are_read_in_two_ways_is_stored_in_bfloat16(
    shape: tuple[int, int], precision: str
) -> None:
    for storage in (Storage.LINEAR, Storage.EXPERT):
        specs = stored(Parameter("x.weight", Role.ATTENTION, storage, shape), BASE)
        assert str(specs["x.weight"]).startswith(precision)
        assert len(specs) == (2 if precision == "F8_E4M3" else 1)
