"""The lightning indexer: score every visible compressed entry, keep the best k (report eqs 15-17).

T queries, N indexer heads, I indexer dim, M buffer rows, K entries kept, B sequences.
"""

from torch import Tensor

from dsv4.kernels.backend import choose
from dsv4.kernels.indexer import reference
from dsv4.kernels.sparse_attention import PageTable


def index_topk(
    q_TNI: Tensor,
    weight_TN: Tensor,
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

    score(t, s) = sum_n weight_TN[t, n] * relu(q_TNI[t, n] . key_s), entries s < visible_T[t]; `longest` bounds
    visible_T on the host; `runs` are borders of stretches of queries of one sequence. K = min(k, longest). Ties go to
    the older entry. Not differentiable: the choice is discrete.
    """
    return choose("index_topk", impl, _IMPLEMENTATIONS)(q_TNI, weight_TN, keys_MI, pages, visible_T, longest, k, runs)


_IMPLEMENTATIONS = {"reference": reference.index_topk}
