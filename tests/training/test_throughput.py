"""What a token costs, counted."""

import pytest

from dsv4.training.throughput import training_flops
from tests.training.runs import recipe


def test_attention_counts_the_keys_that_documents_have() -> None:
    config = recipe().config(32)
    window, layers = config.sliding_window, len(config.layers) + len(config.mtp_layers)
    key = 12 * config.num_attention_heads * config.head_dim * layers  # one more key in every layer
    plain = config.with_changes(compress_ratios=(0,) * layers)
    one, two = training_flops(plain, [1]), training_flops(plain, [2])
    assert two - one == pytest.approx(0.5 * key)  # (1 + 2) / 2 keys a token
    many = training_flops(plain, [1000])
    assert many - one == pytest.approx((sum(min(i, window) for i in range(1, 1001)) / 1000 - 1) * key)
    assert training_flops(plain, [1, 1000]) == pytest.approx((one + 1000 * many) / 1001)
    assert training_flops(config, [1000]) > many
