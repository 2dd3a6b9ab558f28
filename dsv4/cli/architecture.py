"""The architecture of a model as plain data, for the page `/model`: what `dsv4 inspect` shows, and its layers."""

from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

from dsv4.cli.inspect import describe
from dsv4.config import LayerSpec, ModelConfig
from dsv4.model.accounting import layer_kv_bytes_per_token
from dsv4.parameters import Role, Storage, parameter_table


def architecture(name: str, config: ModelConfig, folder: Path | None = None) -> dict[str, Any]:
    """All that the page draws. Parameters are counts; `kv_bytes_per_token` of a layer is in the release's packing,
    without its window. Arithmetic only: a second for the largest models."""
    counts: dict[int, Counter[Role]] = {spec.index: Counter() for spec in config.layers}
    for parameter in parameter_table(config).values():
        first, _, rest = parameter.name.partition(".")
        if first == "layers" and parameter.storage is not Storage.TABLE:
            counts[int(rest.partition(".")[0])][parameter.role] += parameter.numbers
    numbers = {item.name: getattr(config, item.name) for item in fields(config)}
    return {
        **describe(name, config, folder),
        "config": {name: value for name, value in numbers.items() if isinstance(value, int | float | str)},
        "layers": [_layer(config, spec, counts[spec.index]) for spec in config.layers],
    }


def _layer(config: ModelConfig, spec: LayerSpec, counts: Counter[Role]) -> dict[str, Any]:
    total, experts = sum(counts.values()), counts[Role.EXPERT]
    return {
        "index": spec.index,
        "attention": spec.kind.value,
        "routing": spec.routing.value,
        "ratio": spec.ratio,
        "parameters": {role.value: count for role, count in counts.items()},
        "total": total,
        "active": total - experts + experts // config.n_routed_experts * config.num_experts_per_tok,
        "kv_bytes_per_token": layer_kv_bytes_per_token(config, spec),
    }
