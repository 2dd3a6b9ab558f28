"""Cache sizes: the arithmetic is what is allocated, and what the accounting says."""

from pathlib import Path
from typing import Any

import pytest
import torch

import dsv4
from benchmarks.random_model import SHAPES
from dsv4.cache import CacheSpec, CacheStore
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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("tokens", "pages", "slots"), [(1, 1, 1), (256, 1, 3), (257, 2, 2), (3000, 12, 5)])
def test_the_store_takes_what_the_spec_says(name: str, dtype: torch.dtype, tokens: int, pages: int, slots: int) -> None:
    config = tiny_config(**CONFIGS[name])
    spec = CacheSpec(config, dtype.itemsize)
    store = CacheStore(config, dtype, tokens=tokens, sequences=slots)
    assert store.pages.count == spec.pages_for(tokens) == pages
    assert store.bytes == spec.total_bytes(pages, slots)
    assert spec.total_bytes(pages, slots) == pages * spec.page_bytes() + slots * spec.slot_bytes()


@pytest.mark.parametrize("name", ["flash", "pro"])
def test_a_released_model_takes_what_the_spec_says(name: str) -> None:
    config = released(name)
    store = CacheStore(config, torch.bfloat16, tokens=65536, sequences=2, device="meta")
    assert store.bytes == CacheSpec(config, 2).total_bytes(256, 2)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("name", ["flash", "pro"])
def test_64k_tokens_cost_what_the_accounting_says(name: str, itemsize: int) -> None:
    """Tails and the prediction layer are the rest."""
    config = released(name)
    spec = CacheSpec(config, itemsize)
    allocated = spec.total_bytes(spec.pages_for(65536), 1)
    assert 1.0 < allocated / accounting.kv_bytes(config, 65536, itemsize) < 1.04


def test_64k_tokens_in_memory() -> None:
    """A real store, allocated and counted, with the shape of the benchmark model."""
    store = CacheStore(SHAPES["b120m"], torch.float32, tokens=65536, sequences=1)
    assert store.bytes == pytest.approx(accounting.kv_bytes(SHAPES["b120m"], 65536, 4), rel=0.02)


def test_pages_cover_whole_compressed_entries() -> None:
    with pytest.raises(ValueError, match="page_tokens must be a multiple of 128, got 100"):
        CacheSpec(tiny_config(), 4, page_tokens=100)
    assert CacheSpec(tiny_config(), 4, page_tokens=384).pages_for(385) == 2


def test_no_tokens_need_no_pages() -> None:
    assert CacheSpec(tiny_config(), 4).pages_for(0) == 0


def test_an_idle_store_is_whole_and_a_busy_one_is_not() -> None:
    store = CacheStore(tiny_config(), torch.float32, tokens=600, sequences=2)
    assert store.check_integrity()
    for numbers in (store.pages, store.slots):
        taken = numbers.take(1)
        assert not store.check_integrity()
        numbers.give_back(taken)
    assert store.check_integrity()
