"""The least that a token reads and computes: counted from a model's tensors and cache."""

from types import SimpleNamespace

import pytest

from dsv4.bench.floors import decode_bytes, prefill_operations
from dsv4.cache import CacheSpec
from dsv4.config import AttentionKind
from dsv4.model import accounting
from dsv4.testing.tiny import tiny_config


def ours(dtype: str) -> SimpleNamespace:
    config = tiny_config()
    store = SimpleNamespace(spec=CacheSpec(config, dtype))
    model = SimpleNamespace(
        config=config,
        plan=SimpleNamespace(read_per_token=1000),
        engine=SimpleNamespace(cache=SimpleNamespace(store=store)),
    )
    return SimpleNamespace(model=model)


@pytest.mark.parametrize("dtype", ["release", "fp32"])
def test_a_longer_context_reads_its_keys_and_entries(dtype: str) -> None:
    case = ours(dtype)
    config, form = case.model.config, case.model.engine.cache.store.spec.format
    near, far = 1 << 16, 1 << 17
    expected = 0
    for spec in config.layers:
        if spec.kind is AttentionKind.CSA:
            expected += (far - near) // spec.ratio * form.index_width * form.dtype.itemsize
        elif spec.ratio:
            expected += (far - near) // spec.ratio * form.entry_width * form.dtype.itemsize
    assert expected > 0
    assert decode_bytes(case, far) - decode_bytes(case, near) == expected


def test_a_short_prompt_is_mostly_weights() -> None:
    case = ours("release")
    parameters = accounting.parameters(case.model.config)
    weights = 2 * (parameters.active - parameters.head)
    assert weights == prefill_operations(case, 0)
    assert prefill_operations(case, 1 << 20) > 2 * weights
