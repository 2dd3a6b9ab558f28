"""Backward passes give back what one long sequence took.

Legend: T tokens, H heads, C head dim, M entry rows, I indexer dim.
"""

import ctypes
import gc
from pathlib import Path

import pytest
import torch

from dsv4.kernels import native
from dsv4.kernels.indexer_loss import IndexedAttention
from dsv4.kernels.indexer_loss.native import loss_and_gradients
from dsv4.kernels.sparse_attention import KeySet, PageTable, Prefix, sparse_attention

pytestmark = [
    pytest.mark.skipif(not native.available(), reason=f"native kernels: {native.why_not()}"),
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc"),
]
ENTRIES, DIM = 40_000, 512  # their rows as float32 are 82 MB, more than a call holds on to
WINDOW_T2 = torch.tensor([[0, 1]])
PAGES = PageTable(torch.zeros(1, 1, dtype=torch.int64), ENTRIES, torch.zeros(1, dtype=torch.int64))


def held() -> int:
    """Bytes of memory that this process uses, without what is free and not yet given back."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc; what other tests of this process freed counts else
    if trim is not None:
        trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_the_indexers_loss() -> None:
    seen = IndexedAttention(
        layer=0,
        index_TJI=torch.randn(1, 1, 8),
        weight_TJ=torch.randn(1, 1),
        index_MI=torch.randn(ENTRIES, 8),
        pages=PAGES,
        visible_T=torch.tensor([ENTRIES]),
        chosen_TK=None,
        query_THC=torch.randn(1, 1, DIM),
        window_WC=torch.randn(1, DIM),
        entries_MC=torch.randn(ENTRIES, DIM),
        keys=KeySet(WINDOW_T2, (0, 1)),
        sink_H=torch.zeros(1),
        scale=0.05,
    )
    before = held()
    loss_and_gradients(seen)
    assert held() - before < 40 << 20


def test_gradients_of_attention() -> None:
    keys = KeySet(WINDOW_T2, (0, 1), Prefix(torch.tensor([ENTRIES]), PAGES, ENTRIES))
    q, window, entries = torch.randn(1, 1, DIM, requires_grad=True), torch.randn(1, DIM), torch.randn(ENTRIES, DIM)
    out = sparse_attention(q, window, entries, keys, torch.zeros(1), scale=0.05)
    before = held()
    torch.autograd.grad(out.sum(), [q])
    assert held() - before < 40 << 20
