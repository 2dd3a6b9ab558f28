"""The quantisation fields of a config: which methods are known, and the ones that are refused by name.

`fp8` is the release's own method; the others are re-quantisations that `dsv4 convert` reads by the tensors they left
(dsv4/checkpoint/requantized). Fields that say how modules of another program are named are not asked.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from dsv4.config.ranges import shown

QUANTIZATION: dict[str, Any] = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "scale_fmt": "ue8m0",
    "weight_block_size": [128, 128],
}
METHODS = ("fp8", "compressed-tensors", "modelopt", "gptq", "auto-round")
EXPERT_DTYPES = ("fp4", "fp8", "bf16")
# values of fields that are read, by method; a field that is absent says nothing
_READ: Mapping[str, Mapping[str, tuple[Any, ...]]] = MappingProxyType(
    {
        "fp8": {"moe_quant_algo": ("NVFP4",)},
        "compressed-tensors": {
            "format": (
                "dense",
                "float-quantized",
                "int-quantized",
                "mixed-precision",
                "mxfp4-pack-quantized",
                "naive-quantized",
                "nvfp4-pack-quantized",
                "pack-quantized",
            ),
            "quantization_status": ("compressed",),
        },
        "modelopt": {"quant_algo": ("NVFP4", "FP8", "FP8_PB_WO", "W4A16_NVFP4", "MIXED_PRECISION")},
        "gptq": {"bits": (2, 4, 8), "sym": (True,)},
        "auto-round": {"bits": (2, 4, 8), "sym": (True,), "packing_format": ("auto_round:auto_gptq",)},
    }
)


def read_quantization(raw: Mapping[str, Any]) -> dict[str, Any]:
    """`quantized` and `expert_dtype` of a config without nulls. Raises ValueError naming the field and what is read."""
    # fields of MLX and of msModelSlim, whose folders have no quant_method
    for name, writer in (("quantization", "MLX"), ("quantize", "msModelSlim")):
        if name in raw:
            raise ValueError(f"{name} ({writer}) {shown(raw[name])} is not read: {_what_is_read()}")
    settings = raw.get("quantization_config") or {}
    if not isinstance(settings, dict):
        raise ValueError(f"quantization_config must be an object, got {shown(settings)}")
    if not settings:
        return {"expert_dtype": _expert_dtype("expert_dtype", raw.get("expert_dtype"))}
    method = settings.get("quant_method")
    if method not in METHODS:
        raise ValueError(f"quantization_config.quant_method {shown(method)} is not read: {_what_is_read()}")
    settings = {name: value for name, value in settings.items() if value is not None}
    _check_values(method, settings)
    if method != "fp8":
        return {"quantized": True}
    for name in ("fmt", "weight_block_size"):
        wanted = QUANTIZATION[name]
        if settings.get(name, wanted if name == "fmt" else None) != wanted:
            raise ValueError(f"quantization_config.{name} must be {wanted!r}, got {shown(settings.get(name))}")
    outer = _expert_dtype("expert_dtype", raw.get("expert_dtype"))
    inner = _expert_dtype("quantization_config.expert_dtype", settings.get("expert_dtype"))
    experts = None if "moe_quant_algo" in settings else outer or inner
    return {"quantized": True, "expert_dtype": experts}


def _check_values(method: str, settings: Mapping[str, Any]) -> None:
    """Refuse what changes the meaning of the tensors: other formats, rotations of the weights."""
    for name, allowed in _READ[method].items():
        value = settings.get(name, allowed[0])
        if not any(value == item and isinstance(value, bool) == isinstance(item, bool) for item in allowed):
            raise ValueError(
                f"quantization_config.{name} {shown(value)} of {method} is not read, "
                f"only {', '.join(map(str, allowed))}"
            )
    groups = settings.get("config_groups") if method == "compressed-tensors" else None
    for name, group in groups.items() if isinstance(groups, dict) else ():
        if isinstance(group, dict) and group.get("format") is not None:
            allowed = _READ[method]["format"]
            if group["format"] not in allowed:
                raise ValueError(
                    f"quantization_config.config_groups.{name}.format {shown(group['format'])} is not read, "
                    f"only {', '.join(allowed)}"
                )
    for name in ("transform_config", "sparsity_config"):
        value = settings.get(name)
        if value and not (isinstance(value, dict) and value.get("format") == "dense"):
            raise ValueError(f"quantization_config.{name} must be empty: weights that were transformed are not read")


def _what_is_read() -> str:
    return f"{', '.join(METHODS)} are (docs/checkpoints.md)"


def _expert_dtype(name: str, value: Any) -> str | None:
    if value not in (None, *EXPERT_DTYPES):
        raise ValueError(f"{name} must be one of {', '.join(EXPERT_DTYPES)}, got {shown(value)}")
    return None if value == "bf16" else value
