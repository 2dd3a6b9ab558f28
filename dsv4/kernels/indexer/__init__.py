"""The lightning indexer: score every visible compressed entry, keep the best k (report eqs 15-17).

Legend: T tokens, J indexer heads, I indexer dim, M entry rows, K choices per token, B sequences, P pages.
"""

from torch import Tensor, uint8

from dsv4.kernels.backend import Implementation, dispatch
from dsv4.kernels.indexer import native, reference
from dsv4.kernels.rows import index_bytes
from dsv4.kernels.sparse_attention import PageTable


def index_topk(
    q_TJI: Tensor,
    weight_TJ: Tensor,
    keys_MI: Tensor,
    pages: PageTable,
    visible_T: Tensor,
    longest: int,
    k: int,
    *,
    runs: tuple[int, ...],
    impl: str | None = None,
) -> Tensor:
    """Entry numbers (not rows) of the k best visible entries per query, chosen_TK int64, ascending, -1 = none.

    score(t, s) = sum_n weight_TJ[t, n] * relu(q_TJI[t, n] . key_s), entries s < visible_T[t]; `longest` bounds
    visible_T on the host; `runs` are borders of stretches of queries of one sequence. K = min(k, longest). Ties go to
    the older entry. Keys are floats or uint8 rows of `rows.pack_index`. A score of -inf or NaN is never chosen among
    more than k. Not differentiable: the choice is discrete. k must be positive.

    The native implementation chooses the same entries in every batch. It adds in fp32, one head after another, so near
    ties may have another result than in the reference. Raises ValueError for packed rows whose length does not fit I.
    """
    if keys_MI.dtype == uint8 and keys_MI.shape[1] != index_bytes(q_TJI.shape[2]):
        need = index_bytes(q_TJI.shape[2])
        raise ValueError(f"packed keys of {q_TJI.shape[2]} dims need rows of {need} bytes, got {keys_MI.shape[1]}")
    return dispatch("index_topk", impl, _INDEX_TOPK, q_TJI, weight_TJ, keys_MI, pages, visible_T, longest, k, runs)


# the choice has no gradient, so recording one changes nothing
_INDEX_TOPK = (
    Implementation("native", native.index_topk, native.takes, native.index_topk),
    Implementation("reference", reference.index_topk, differentiable=reference.index_topk),
)
