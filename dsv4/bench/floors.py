"""What `dsv4 bench --long` shows under each row: the least that tokens must read and compute, beside the machine."""

from collections.abc import Iterator

from dsv4.bench.kernels import Rate, matmul_job, read_job
from dsv4.bench.speed import Ours, Speed
from dsv4.model import accounting


def decode_bytes(ours: Ours, context: int) -> int:
    """Bytes that a token after `context` tokens reads at least: weights, entries (windows among them), indexer keys."""
    model = ours.model
    assert model.plan is not None
    entries, indexed = accounting.keys_read(model.config, context)
    form = model.engine.cache.store.spec.format
    rows = entries * form.entry_width + indexed * form.index_width
    return model.plan.read_per_token + rows * form.dtype.itemsize


def prefill_operations(ours: Ours, context: int) -> float:
    """Multiplications and additions of a token in the middle of a prompt of `context` tokens, each counted as one:
    weights without the head, attention, and scores of the indexer."""
    c = ours.model.config
    parameters = accounting.parameters(c)
    entries, indexed = accounting.keys_read(c, context // 2)
    attention = 4 * c.num_attention_heads * c.head_dim * entries
    return 2.0 * (parameters.active - parameters.head) + attention + 2 * c.index_n_heads * c.index_head_dim * indexed


def floors(ours: Ours, row: Speed) -> Iterator[Rate]:
    """Rates of one row. Yardsticks, measured now: a plain sum of memory and torch's fp32 product; whole-number products
    of the indexer may be faster than that."""
    size, read = decode_bytes(ours, row.context), read_job()
    read.run()
    yield Rate(f"decode, {size / 1e6:,.1f} MB a token", size * row.decode_rate / 1e9, read.rate(), "GB/s")
    work, product = prefill_operations(ours, row.context) / 1e9, matmul_job(512)
    product.run()
    yield Rate(f"prefill, {work * 1e3:,.1f} MFLOP a token", work * row.prefill_rate, product.rate(), "GFLOP/s")
