"""Cache sizes: the arithmetic is what is allocated, and what the accounting says."""

from pathlib import Path
from typing import Any

import pytest

import dsv4
from benchmarks.random_model import SHAPES
from dsv4.cache import CacheDtype, CacheSpec, CacheStore
from dsv4.config import ModelConfig
from dsv4.model import accounting
from dsv4.testing.tiny import tiny_config

CONFIGS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "pro-like": {"compress_ratios": (128, 128, 4, 128, 0)},
    "no prediction": {"num_nextn_predict_layers": 0, "compress_ratios": (0, 4, 128, 4)},
    "other ratios": {"compress_ratios": (16, 32, 64, 256, 0), "sliding_window": 16},
    "sliding only": {"compress_ratios": (0, 0, 0, 0, 0), "head_dim": 48},
}


def released(name: str) -> ModelConfig:
    return ModelConfig.from_file(Path(dsv4.__file__).parent / "configs" / f"{name}.json")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "release"])
@pytest.mark.parametrize(("tokens", "pages", "slots"), [(1, 1, 1), (256, 1, 3), (257, 2, 2), (3000, 12, 5)])
def test_the_store_takes_what_the_spec_says(name: str, dtype: CacheDtype, tokens: int, pages: int, slots: int) -> None:
    config = tiny_config(**CONFIGS[name])
    spec = CacheSpec(config, dtype)
    store = CacheStore(config, dtype, tokens=tokens, slots=slots)
    assert store.pages.count == spec.pages_for(tokens) == pages
    assert store.bytes == spec.total_bytes(pages, slots)
    assert spec.total_bytes(pages, slots) == pages * spec.page_bytes() + slots * spec.slot_bytes()


@pytest.mark.parametrize("name", ["flash", "pro"])
def test_a_released_model_takes_what_the_spec_says(name: str) -> None:
    config = released(name)
    store = CacheStore(config, "bf16", tokens=65536, slots=2, device="meta")
    assert store.bytes == CacheSpec(config, "bf16").total_bytes(256, 2)


@pytest.mark.parametrize(("dtype", "itemsize"), [("bf16", 2), ("fp32", 4), ("release", None)])
@pytest.mark.parametrize("name", ["flash", "pro"])
def test_a_million_tokens_cost_what_the_accounting_says(name: str, dtype: CacheDtype, itemsize: int | None) -> None:
    """Within 1 %: 3,514.25 bytes a token for Flash as released, and the window. Tails and prediction are the rest."""
    config, tokens = released(name), 2**20
    spec = CacheSpec(config, dtype)
    allocated = spec.total_bytes(spec.pages_for(tokens), 1)
    assert 1.0 < allocated / accounting.kv_bytes(config, tokens, itemsize) < 1.01


def test_a_million_tokens_of_flash_in_released_rows() -> None:
    """The allocated tensors, counted, without the rings."""
    store = CacheStore(released("flash"), "release", tokens=2**20, slots=1, device="meta")
    assert (store.bytes - store.spec.slot_bytes()) / 2**20 == 3514.25


def test_64k_tokens_in_memory() -> None:
    """A real store, allocated and counted, with the shape of the benchmark model."""
    store = CacheStore(SHAPES["b120m"], "fp32", tokens=65536, slots=1)
    assert store.bytes == pytest.approx(accounting.kv_bytes(SHAPES["b120m"], 65536, 4), rel=0.02)


def test_pages_cover_whole_compressed_entries() -> None:
    with pytest.raises(ValueError, match="page_tokens must be a multiple of 128, got 100"):
        CacheSpec(tiny_config(), "fp32", page_tokens=100)
    assert CacheSpec(tiny_config(), "fp32", page_tokens=384).pages_for(385) == 2


def test_no_tokens_need_no_pages() -> None:
    assert CacheSpec(tiny_config(), "fp32").pages_for(0) == 0


def test_an_idle_store_is_whole_and_a_busy_one_is_not() -> None:
    store = CacheStore(tiny_config(), "fp32", tokens=600, slots=2)
    assert store.check_integrity()
    for numbers in (store.pages, store.slots):
        taken = numbers.take(1)
        assert not store.check_integrity()
        numbers.give_back(taken)
    assert store.check_integrity()
