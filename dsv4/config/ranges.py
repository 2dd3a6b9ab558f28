"""The allowed range of every number in a model's configuration, and the messages for numbers outside it.

The bounds are far above every released model (Pro: hidden 7,168, 61 layers, 384 experts) and far below the sizes that
would occupy a machine for hours: a config is checked before anything is allocated.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# name -> (type, lowest, highest); the lowest float is excluded where it is 0, except for swiglu_limit (0 = no limit)
RANGES: Mapping[str, tuple[type, float, float]] = MappingProxyType(
    {
        "vocab_size": (int, 1, 1 << 22),
        "hidden_size": (int, 1, 1 << 16),
        "num_hidden_layers": (int, 1, 1024),
        "num_hash_layers": (int, 0, 1024),
        "num_nextn_predict_layers": (int, 0, 1),
        "num_attention_heads": (int, 1, 4096),
        "head_dim": (int, 1, 8192),
        "qk_rope_head_dim": (int, 1, 8192),
        "q_lora_rank": (int, 1, 1 << 16),
        "o_groups": (int, 1, 4096),
        "o_lora_rank": (int, 1, 1 << 16),
        "sliding_window": (int, 1, 1 << 20),
        "index_n_heads": (int, 1, 4096),
        "index_head_dim": (int, 1, 8192),
        "index_topk": (int, 1, 1 << 20),
        "n_routed_experts": (int, 1, 4096),
        "num_experts_per_tok": (int, 1, 4096),
        "moe_intermediate_size": (int, 1, 1 << 18),
        "routed_scaling_factor": (float, 0, 1e4),
        "swiglu_limit": (float, 0, 1e6),
        "n_shared_experts": (int, 1, 1),
        "rms_norm_eps": (float, 0, 1),
        "hc_mult": (int, 1, 32),
        "hc_sinkhorn_iters": (int, 1, 1000),
        "hc_eps": (float, 0, 1),
        "rope_theta": (float, 2, 1e12),
        "compress_rope_theta": (float, 2, 1e12),
        "max_position_embeddings": (int, 1, 1 << 31),
        "bos_token_id": (int, 0, (1 << 22) - 1),
        "eos_token_id": (int, 0, (1 << 22) - 1),
    }
)
INCLUDED_ZERO = frozenset({"swiglu_limit"})
MOST_EXPERTS = 1 << 17  # of all layers together; Pro has 23,424


def number(name: str, value: Any, kind: type, low: float, high: float, *, zero: bool = False) -> int | float:
    """`value` as `kind`, if it is a number in [low, high]; a float range whose `low` is 0 leaves 0 out unless `zero`.

    Raises ValueError with the name and the range. A float without a fraction counts as an integer.
    """
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    real = isinstance(value, int | float) and not isinstance(value, bool)
    above = kind is float and low == 0 and not zero
    if kind is int:
        wanted = f"an integer in [{int(low)}, {int(high)}]" if low != high else f"{int(low)}"
    else:
        wanted = f"a number in {'(' if above else '['}{low:g}, {high:g}]"
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite: {wanted}, got {value}")
    if not real or (kind is int and not whole):
        raise ValueError(f"{name} must be {wanted}, got {shown(value)}")
    if not (low < value if above else low <= value) or value > high:
        raise ValueError(f"{name} must be {wanted}, got {shown(value)}")
    return kind(value)


def field_number(name: str, value: Any) -> int | float:
    """A field of ModelConfig, checked against its range. Raises ValueError."""
    kind, low, high = RANGES[name]
    return number(name, value, kind, low, high, zero=name in INCLUDED_ZERO)


def shown(value: Any) -> str:
    """A value from outside for an error message, shortened."""
    if isinstance(value, dict):
        return f"an object of {len(value)} entries"
    if isinstance(value, list | tuple):
        flat = len(value) <= 8 and all(item is None or isinstance(item, str | int | float) for item in value)
        return f"[{', '.join(map(shown, value))}]" if flat else f"a list of {len(value)} entries"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
