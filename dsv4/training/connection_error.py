"""How far the hyper-connections' mixing matrices are from doubly stochastic (report 2.2).

Legend: T tokens, X = (2 + S) * S mixes.
"""

import torch

from dsv4.kernels.hyper_connection import split_sinkhorn
from dsv4.model.transformer import Transformer


@torch.no_grad()
def connection_error(model: Transformer, draws: int = 32) -> float:
    """The largest |row or column sum - 1| over all connections, for projections drawn from a normal distribution (the
    real ones are RMS-normalised)."""
    config, worst = model.config, 0.0
    generator = torch.Generator().manual_seed(0)
    for block in model.blocks:
        for scale_3, base_X in ((block.hc_attn_scale, block.hc_attn_base), (block.hc_ffn_scale, block.hc_ffn_base)):
            mixes_TX = torch.randn(draws, len(base_X), generator=generator).to(base_X)
            parts = split_sinkhorn(mixes_TX, scale_3, base_X, config.hc_mult, config.hc_sinkhorn_iters, config.hc_eps)
            for dim in (1, 2):
                worst = max(worst, float((parts[2].sum(dim) - 1).abs().max()))
    return worst
