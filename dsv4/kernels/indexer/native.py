"""Indexer scores and top-k by the native kernel: one call, without a tensor of all scores.

Legend: T tokens, J indexer heads, I indexer dim, M entry rows, K choices per token, B sequences, P pages.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from dsv4.kernels import native
from dsv4.kernels.native.operators import operator
from dsv4.kernels.native.structs import INT64, IndexCall, Rows
from dsv4.kernels.sparse_attention.keys import PageTable

_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 3}  # RowKind of rows/rows.h


@cache
def _function() -> Callable[..., None]:
    return native.function("dsv4_index_topk", [ctypes.POINTER(IndexCall)])


def takes(q_TJI: Tensor, weight_TJ: Tensor, keys_MI: Tensor, *_: object) -> str | None:
    """The reason why the native kernel does not accept these inputs; None if it accepts them."""
    floats = (torch.float32, torch.bfloat16)
    return (
        native.needs(q_TJI, floats, "q")
        or native.needs(weight_TJ, floats, "the weight")
        or native.needs(keys_MI, tuple(_KINDS), "keys")
    )


@torch.no_grad()
def index_topk(
    q_TJI: Tensor,
    weight_TJ: Tensor,
    keys_MI: Tensor,
    pages: PageTable,
    visible_T: Tensor,
    longest: int,
    k: int,
    runs: tuple[int, ...],
) -> Tensor:
    """See dsv4.kernels.indexer.index_topk."""
    places = pages.first_BP, pages.sequence_T, pages.entries_per_page
    return _index_topk(q_TJI, weight_TJ, keys_MI, *places, visible_T, longest, k, runs)


@operator(
    "index_topk(Tensor q_TJI, Tensor weight_TJ, Tensor keys_MI, Tensor first_BP, Tensor sequence_T, int per_page,"
    " Tensor visible_T, int longest, int k, int[] runs) -> Tensor",
    lambda q_TJI, *others: q_TJI.new_empty(q_TJI.shape[0], min(others[-2], others[-3]), dtype=torch.int64),
)
def _index_topk(
    q_TJI: Tensor,
    weight_TJ: Tensor,
    keys_MI: Tensor,
    first_BP: Tensor,
    sequence_T: Tensor,
    per_page: int,
    visible_T: Tensor,
    longest: int,
    k: int,
    runs: Sequence[int],
) -> Tensor:
    tokens, heads, dim = q_TJI.shape
    q, weight = q_TJI.to(torch.float32).contiguous(), weight_TJ.to(torch.float32).contiguous()
    first, sequence, visible = first_BP.contiguous(), sequence_T.contiguous(), visible_T.contiguous()
    width = min(k, longest)
    out_TK = torch.empty(tokens, width, dtype=torch.int64)
    if not out_TK.numel():
        return out_TK
    assert keys_MI.stride(1) == 1
    stride = keys_MI.stride(0) * keys_MI.element_size()
    call = IndexCall(
        q_TJI=q.data_ptr(),
        weight_TJ=weight.data_ptr(),
        keys=Rows(keys_MI.data_ptr(), stride, dim, 0, _KINDS[keys_MI.dtype]),
        first_BP=first.data_ptr(),
        sequence_T=sequence.data_ptr(),
        visible_T=visible.data_ptr(),
        runs=ctypes.addressof(borders := (INT64 * len(runs))(*runs)),
        out_TK=out_TK.data_ptr(),
        runs_count=len(borders),
        pages=first.shape[1],
        per_page=per_page,
        heads=heads,
        dim=dim,
        k=k,
        places=width,
        threads=torch.get_num_threads(),
    )
    _function()(call)
    return out_TK
