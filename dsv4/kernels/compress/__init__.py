"""Token-level compression: each block of m tokens becomes one entry (report eqs 9-12 for CSA, 20-23 for HCA).

Legend: R gathered rows (the kept tail, then new tokens), N finished entries, m tokens per entry, W projection width
(C or 2 C), C head dim.
"""

from torch import Tensor

from dsv4.kernels.autograd import node
from dsv4.kernels.backend import Implementation, dispatch
from dsv4.kernels.compress import native, reference


def pool(
    kv_RW: Tensor, score_RW: Tensor, own_Nm: Tensor, previous_Nm: Tensor | None, *, impl: str | None = None
) -> Tensor:
    """Gated pooling of finished blocks: entries [N, C].

    own_Nm: rows of each block's own tokens. previous_Nm: rows of the block before it, -1 where there is none. With
    previous_Nm the compression overlaps, and W = 2C: the first half of a row is its contribution to the *next* block's
    entry, the second half to its own (report: b and a). Without it W = C. score_RW already carries the position bias.
    The softmax runs per channel over the block's m (or 2m) rows. N = 0 gives an empty result.
    """
    return dispatch("compress.pool", impl, _POOL, kv_RW, score_RW, own_Nm, previous_Nm)


_POOL = (
    Implementation("native", native.pool, native.takes, node(native.pool, native.backward, keep=slice(1))),
    Implementation("reference", reference.pool, differentiable=reference.pool),
)
