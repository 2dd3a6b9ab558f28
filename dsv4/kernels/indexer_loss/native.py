"""The indexer's KL and its gradients by one native call.

Legend: T tokens, J indexer heads, I indexer dim, M entry rows.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from dsv4.kernels import native
from dsv4.kernels.indexer_loss.indexed import IndexedAttention
from dsv4.kernels.native.structs import IndexerLossCall, Rows
from dsv4.kernels.sparse_attention.keys import KeySet, Prefix
from dsv4.kernels.sparse_attention.native import attention_call


@cache
def _function() -> Callable[..., None]:
    return native.function("dsv4_indexer_loss", [ctypes.POINTER(IndexerLossCall)])


def takes(seen: IndexedAttention) -> str | None:
    """Why the native kernel does not take these; None if it does."""
    floats = (torch.float32, torch.bfloat16)
    return (
        native.needs(seen.index_TJI, floats, "the indexer's queries")
        or native.needs(seen.query_THC, floats, "the queries")
        or native.needs(seen.window_WC, floats, "the window")
        or native.needs(seen.entries_MC, floats, "the entries")
    )


def loss_and_gradients(seen: IndexedAttention) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `dsv4.kernels.indexer_loss.reference.loss_and_gradients`. Added up in an order that does not depend on the
    number of threads."""
    floats = (seen.index_TJI, seen.weight_TJ, seen.index_MI, seen.query_THC)
    index, weight, index_rows, q = (t.detach().to(torch.float32).contiguous() for t in floats)
    d_index_TJI, d_weight_TJ, d_index_MI = (torch.zeros_like(t) for t in (index, weight, index_rows))
    loss_T, dim = torch.zeros(len(q), dtype=torch.float32), index.shape[2]
    if len(q) and len(index_rows):
        read = KeySet(seen.keys.window_T2, seen.keys.runs, Prefix(seen.visible_T, seen.pages, len(index_rows)))
        attention, _held = attention_call(q, seen.window_WC, seen.entries_MC, read, seen.sink_H, seen.scale)
        chosen = None if seen.chosen_TK is None else seen.chosen_TK.contiguous()
        if chosen is not None:
            attention.chosen_TK, attention.chosen = chosen.data_ptr(), chosen.shape[1]
        call = IndexerLossCall(
            attention=attention,
            index_TJI=index.data_ptr(),
            weight_TJ=weight.data_ptr(),
            index=Rows(index_rows.data_ptr(), dim * index_rows.element_size(), dim, 0, 0),
            d_index_TJI=d_index_TJI.data_ptr(),
            d_weight_TJ=d_weight_TJ.data_ptr(),
            d_index_MI=d_index_MI.data_ptr(),
            loss_T=loss_T.data_ptr(),
            heads=index.shape[1],
            dim=dim,
        )
        _function()(call)
    return loss_T.sum(), d_index_TJI, d_weight_TJ, d_index_MI
