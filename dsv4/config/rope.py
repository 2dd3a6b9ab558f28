"""Rotary fields of a config: `rope_scaling` (released) and `rope_parameters` (transformers 5), flat or nested.

V4 has two tables: a plain one for layers without a compressor (`rope_theta`), and a long one, with YaRN, for the others
(`compress_rope_theta`). A flat object describes the long one; `{"main": ..., "compress": ...}` gives both. Each field
is used or refused by name: a wrong table makes all logits wrong without any error.
"""

from dataclasses import dataclass
from typing import Any

from dsv4.config.ranges import field_number, number, shown

_YARN_RANGES: dict[str, tuple[type, float, float]] = {
    "factor": (float, 0, 1e6),
    "original_max_position_embeddings": (int, 1, 1 << 31),
    "beta_fast": (float, 0, 1e6),
    "beta_slow": (float, 0, 1e6),
}
_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0}  # YaRN's own, in every implementation
# Fields another value of which would be another table: V4 multiplies cos and sin by nothing and rounds its ramp.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention_factor": (1,),
    "attn_factor": (1,),
    "mscale": (0,),
    "mscale_all_dim": (0,),
    "truncate": (True,),
    "finetuned": (True, False),
    "extrapolation_factor": (1,),
}
_KINDS = ("yarn", "default")
# The rotary fields a config may have at its top, and other engines' names for what V4 does anyway.
_AT_TOP: dict[str, tuple[Any, ...] | None] = {
    "rope_theta": None,
    "compress_rope_theta": None,
    "rope_scaling": None,
    "rope_parameters": None,
    "compress_rope_parameters": None,
    "qk_rope_head_dim": None,
    "partial_rotary_factor": None,
    "rope_interleave": (True,),
}
# Each describes the scaled table; early writers of transformers' dialect repeat it under the last name.
_OBJECTS = ("rope_scaling", "rope_parameters", "compress_rope_parameters")
_IMAGE_ENCODER = "vision_"
_ROTARY = ("rope", "rotary", "yarn")


@dataclass(frozen=True, slots=True)
class Yarn:
    """YaRN scaling of the rotary table used in layers with a compressor (report 2.3)."""

    factor: float = 16.0
    original_max_position_embeddings: int = 65536
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def __post_init__(self) -> None:
        for name, (kind, low, high) in _YARN_RANGES.items():
            number(f"rope_scaling.{name}", getattr(self, name), kind, low, high)
        if self.beta_fast <= self.beta_slow:
            raise ValueError(
                f"rope_scaling.beta_fast must be above beta_slow {self.beta_slow:g}, got {self.beta_fast:g}"
            )


def read_rope(raw: dict[str, Any]) -> dict[str, Any]:
    """The rotary fields of ModelConfig from a config without nulls: yarn always, thetas and qk_rope_head_dim if the
    config has them. Raises ValueError naming the field."""
    found: dict[str, Any] = {}
    for name, value in raw.items():
        if any(word in name.lower() for word in _ROTARY) and not name.startswith(_IMAGE_ENCODER):
            _check_top(name, value)
    _share(found, "", raw, raw)
    objects = [name for name in _OBJECTS if raw.get(name) not in (None, {})]
    yarns = [_read_object(name, raw[name], raw, found) for name in objects]
    for name, yarn in zip(objects, yarns, strict=True):
        if yarn != yarns[0]:
            raise ValueError(f"{name} must say the same as {objects[0]}, or one of them be left out")
    return {**found, "yarn": yarns[0] if yarns else None}


def _check_top(name: str, value: Any) -> None:
    if name not in _AT_TOP:
        raise ValueError(f"{name} is not known in DeepSeek-V4: rotary fields are {', '.join(_AT_TOP)}")
    allowed = _AT_TOP[name]
    if allowed is not None and not any(value is item for item in allowed):
        raise ValueError(
            f"{name} must be {' or '.join(map(str, allowed))} or absent in DeepSeek-V4, got {shown(value)}"
        )


def _read_object(name: str, value: Any, raw: dict[str, Any], found: dict[str, Any]) -> Yarn | None:
    table = _table(name, value)
    if not table.keys() & {"main", "compress"}:
        _take_flat_theta(name, table, raw, found)
        _share(found, f"{name}.", table, raw)
        return _yarn(name, table, raw)
    extra = sorted(table.keys() - {"main", "compress"})
    if extra:
        raise ValueError(f"{name}.{extra[0]} must lie in {name}.main or {name}.compress")
    main = _table(f"{name}.main", table.get("main", {}))
    if _yarn(f"{name}.main", main, raw) is not None:
        raise ValueError(f"{name}.main.rope_type must be 'default': layers without a compressor are not scaled")
    compress = _table(f"{name}.compress", table.get("compress", {}))
    for part, rotary, field in (("main", main, "rope_theta"), ("compress", compress, "compress_rope_theta")):
        if "rope_theta" in rotary:
            _agree(found, field, field_number(field, rotary["rope_theta"]), f"{name}.{part}.rope_theta")
        _share(found, f"{name}.{part}.", rotary, raw)
    return _yarn(f"{name}.compress", compress, raw)


def _take_flat_theta(name: str, table: dict[str, Any], raw: dict[str, Any], found: dict[str, Any]) -> None:
    """A theta beside YaRN's fields: writers put there the config's `rope_theta`, or the theta of the scaled table."""
    if "rope_theta" not in table:
        return
    theta = field_number("rope_theta", table["rope_theta"])
    if "compress_rope_theta" in found and theta == found["compress_rope_theta"]:
        return
    _agree(found, "rope_theta", theta, f"{name}.rope_theta")


def _share(found: dict[str, Any], prefix: str, table: dict[str, Any], raw: dict[str, Any]) -> None:
    """What may stand at the top or in a table: the thetas of the top, and how many dims rotate."""
    if not prefix:
        for name in ("rope_theta", "compress_rope_theta"):
            if name in table:
                found[name] = field_number(name, table[name])
    if "qk_rope_head_dim" in raw:
        found["qk_rope_head_dim"] = field_number("qk_rope_head_dim", raw["qk_rope_head_dim"])
    if "partial_rotary_factor" in table and "head_dim" in raw:
        where = f"{prefix}partial_rotary_factor"
        share = number(where, table["partial_rotary_factor"], float, 0, 1)
        dims = share * field_number("head_dim", raw["head_dim"])
        if abs(dims - round(dims)) > 1e-6:
            raise ValueError(f"{where} must give a whole number of dims of head_dim {raw['head_dim']}, got {share}")
        _agree(found, "qk_rope_head_dim", round(dims), where)


def _agree(found: dict[str, Any], field: str, value: Any, where: str) -> None:
    if found.setdefault(field, value) != value:
        raise ValueError(f"{where} must agree with {field} {found[field]:g}, got {value:g}")


def _table(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object, got {shown(value)}")
    return {key: item for key, item in value.items() if item is not None}


def _kind(name: str, table: dict[str, Any]) -> str:
    kinds = [table[key] for key in ("rope_type", "type") if key in table]
    for kind in kinds:
        if kind not in _KINDS:
            raise ValueError(
                f"{name}.{'rope_type' if 'rope_type' in table else 'type'} must be 'yarn' or 'default', "
                f"got {shown(kind)}"
            )
    if len(set(kinds)) == 2:
        raise ValueError(f"{name}.type must agree with rope_type {kinds[0]!r}, got {kinds[1]!r}")
    if kinds:
        return kinds[0]
    return "yarn" if table.keys() & _YARN_RANGES.keys() else "default"


def _yarn(name: str, table: dict[str, Any], raw: dict[str, Any]) -> Yarn | None:
    kind = _kind(name, table)
    known = {"type", "rope_type", "rope_theta", "partial_rotary_factor", *_YARN_RANGES, *_NEUTRAL}
    for key, value in table.items():
        if key not in known:
            raise ValueError(f"{name}.{shown(key)[1:-1]} is not known in DeepSeek-V4's rotary tables")
        if key in _NEUTRAL and value not in _NEUTRAL[key]:
            allowed = " or ".join(map(str, _NEUTRAL[key]))
            raise ValueError(f"{name}.{key} must be {allowed} or absent in DeepSeek-V4, got {shown(value)}")
    if kind == "default":
        unused = sorted(table.keys() & _YARN_RANGES.keys())
        if unused:
            raise ValueError(f"{name}.{unused[0]} has no meaning with rope_type 'default'")
        return None
    original = "original_max_position_embeddings"
    values: dict[str, Any] = {**_DEFAULTS, **({original: raw[original]} if original in raw else {})}
    if original in table and table[original] != values.get(original, table[original]):
        raise ValueError(
            f"{name}.{original} must agree with {original} {shown(values[original])}, got {shown(table[original])}"
        )
    values.update({key: table[key] for key in _YARN_RANGES if key in table})
    for key, (kind_of, low, high) in _YARN_RANGES.items():
        if key not in values:
            raise ValueError(f"{name}.{key} is missing")
        values[key] = number(f"{name}.{key}", values[key], kind_of, low, high)
    return Yarn(**values)
