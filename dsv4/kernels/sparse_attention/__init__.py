"""The one attention of V4: each query reads some rows of a shared key-value buffer (report 2.3, eqs 18-19, 24-27).

Legend: T tokens, H heads, C head dim, W window rows, M entry rows, K choices per token, B sequences, P pages.
"""

from torch import Tensor, uint8

from dsv4.kernels.autograd import node
from dsv4.kernels.backend import Implementation, dispatch
from dsv4.kernels.rows import entry_bytes
from dsv4.kernels.sparse_attention import native, reference, torch
from dsv4.kernels.sparse_attention.keys import ChosenEntries, KeySet, PageTable, Prefix

__all__ = ["ChosenEntries", "KeySet", "PageTable", "Prefix", "sparse_attention"]


def sparse_attention(
    q_THC: Tensor,
    window_WC: Tensor,
    entries_MC: Tensor | None,
    keys: KeySet,
    sink_H: Tensor,
    *,
    scale: float,
    rope_dim: int = 0,
    impl: str | None = None,
) -> Tensor:
    """Attention output o_THC in q's dtype; keys are values (one shared key-value head).

    window_WC holds the uncompressed rows of this step's sequences, entries_MC the compressed ones (None or empty
    where there are none): floats, or uint8 rows of `rows.pack_entry` with `rope_dim` rotary dims, used for these only.
    One softmax over a query's window rows, its entries and the sink, which adds exp(sink_H) to the denominator and no
    value (eq. 27). A token that is both in the window and in an entry counts twice, as released. A query always sees
    at least itself, so no softmax is empty. Chosen rows may come in any order. No input is modified.

    The native implementation gives each query the same bits in every batch, and adds in fp32. Raises ValueError when
    the length of packed rows does not fit `rope_dim` and C.
    """
    if entries_MC is not None and entries_MC.dtype == uint8:
        width, need = entries_MC.shape[1], entry_bytes(q_THC.shape[2], rope_dim)
        if width != need:
            raise ValueError(f"packed entries with {rope_dim} rotary dims need rows of {need} bytes, got {width}")
    if entries_MC is None:
        entries_MC = window_WC.new_empty(0, window_WC.shape[1])
    return dispatch(
        "sparse_attention", impl, _SPARSE_ATTENTION, q_THC, window_WC, entries_MC, keys, sink_H, scale, rope_dim
    )


_SPARSE_ATTENTION = (
    Implementation(
        "native",
        native.sparse_attention,
        native.takes,
        node(native.sparse_attention, native.backward, keep=slice(1)),
        torch.has_gradient,
    ),
    Implementation(
        "torch",
        torch.sparse_attention,
        differentiable=node(torch.sparse_attention_dense, torch.backward, keep=slice(1)),
        differentiates=torch.has_gradient,
    ),
    Implementation("reference", reference.sparse_attention, differentiable=reference.sparse_attention),
)
