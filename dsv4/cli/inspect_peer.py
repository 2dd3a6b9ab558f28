"""What `dsv4 inspect` compares with: DeepSeek-V3.2, and the report's figure 1."""

from collections.abc import Mapping

from dsv4.bench.plot import Panel, charts_svg
from dsv4.config import ModelConfig
from dsv4.model.accounting import BF16_COST, Flops, flops_per_token, kv_bytes

POINTS = 64
TOKENS = 1 << 20


class V32:
    """DeepSeek-V3.2, the yardstick of the report's figure 1: 61 layers of sparse latent attention."""

    layers, heads, latent, rope, top_k = 61, 128, 512, 64, 2048
    index_heads, index_dim = 64, 128
    active, head = 37.5e9, 129280 * 7168

    @classmethod
    def kv_bytes_per_token(cls) -> int:
        """48,068: fp8 latent with 16 scale bytes, bf16 rope, fp8 indexer key with a 4-byte scale."""
        return cls.layers * (cls.latent + 16 + 2 * cls.rope + cls.index_dim + 4)

    @classmethod
    def flops_per_token(cls, position: int) -> Flops:
        keys = min(position, cls.top_k)
        attention = BF16_COST * cls.layers * 2 * cls.heads * (2 * cls.latent + cls.rope) * keys
        indexer = cls.layers * 2.0 * cls.index_heads * cls.index_dim * position
        return Flops(2.0 * (cls.active + cls.head * (BF16_COST - 1)), attention, indexer)


def efficiency_svg(models: Mapping[str, ModelConfig]) -> str:
    """FLOPs per token and cache size against context length for V3.2 and the given models (report figure 1)."""
    at = [max(1, TOKENS * i // POINTS) for i in range(POINTS + 1)]
    flops = {"V3.2": [V32.flops_per_token(n).total / 1e12 for n in at]}
    cache = {"V3.2": [V32.kv_bytes_per_token() * n / 1e9 for n in at]}
    for name, config in models.items():
        flops[name] = [flops_per_token(config, n).total / 1e12 for n in at]
        cache[name] = [kv_bytes(config, n) / 1e9 for n in at]
    panels = [
        Panel("Operations per token", "T (FP8 equivalent)", flops, notes=_times_lower(flops)),
        Panel("Cache of one sequence", "GB", cache, notes=_times_lower(cache)),
    ]
    return charts_svg(panels)


def _times_lower(lines: dict[str, list[float]]) -> dict[str, str]:
    yardstick = lines["V3.2"][-1]
    return {name: f"{yardstick / values[-1]:,.1f}x lower at 1M" for name, values in lines.items() if name != "V3.2"}
