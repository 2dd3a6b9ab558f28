"""Operations that training needs, and operations per second of the machine: their ratio gives the MFU of a run."""

import time
from collections.abc import Sequence

import torch

from dsv4.config import AttentionKind, ModelConfig
from dsv4.model import accounting
from dsv4.model.device import synchronize


def training_flops(config: ModelConfig, lengths: Sequence[int], *, dense: bool = False) -> float:
    """Operations that training on one token needs, the mean over documents of these lengths: 6 per active weight (2
    forward, 4 backward), head, prediction block and attention with its indexers included. Recomputation does not
    count.
    """
    p = accounting.parameters(config)
    weights = float(p.active)
    if config.num_nextn_predict_layers:
        idle = (config.n_routed_experts - config.num_experts_per_tok) * 3 * config.hidden_size
        weights += p.mtp - idle * config.moe_intermediate_size * config.num_nextn_predict_layers + p.head
    keys = indexed = 0.0
    for length, share in ((n, n / sum(lengths)) for n in lengths):
        window = min(length, config.sliding_window)
        window -= window * (window - 1) / 2 / length  # the first tokens see fewer
        for spec in (*config.layers, *config.mtp_layers):
            most = length / spec.ratio if spec.ratio else 0.0
            entries = most / 2  # a token sees half of them on average
            if spec.kind is AttentionKind.CSA and not dense:
                indexed += share * entries
                chosen = min(most, config.index_topk)
                entries = chosen - chosen**2 / (2 * most)
            keys += share * (window + entries)
    attention = 2.0 * config.num_attention_heads * config.head_dim * keys
    return 6 * weights + 6 * attention + 6 * config.index_n_heads * config.index_head_dim * indexed


def matmul_rate(device: torch.device | str = "cpu", size: int = 1024, seconds: float = 0.3) -> float:
    """Operations per second of torch's fp32 matrix product here and now."""
    where = torch.device(device)
    a, b = torch.randn(size, size, device=where), torch.randn(size, size, device=where)
    a @ b
    synchronize(where)
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        a @ b
        synchronize(where)
        done += 1
    return 2 * size**3 * done / (time.perf_counter() - start)
