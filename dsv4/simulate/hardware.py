"""The table of accelerators, and of machines that a user describes."""

import math
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

TABLE = Path(__file__).with_name("hardware.toml")
GIGA, TERA = 10**9, 10**12


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One device. memory: bytes; bandwidth: bytes a second of it. fp8: operations a second at the report's unit, dense.
    devices: in a node. link, network: bytes a second one way, inside a node and between nodes. price: US dollars for an
    hour; None = not known. cpu: a socket, whose step has no launches of kernels."""

    name: str
    memory: float
    bandwidth: float
    fp8: float
    devices: int
    link: float
    network: float
    price: float | None = None
    cpu: bool = False


_SCALES = {"memory": GIGA, "bandwidth": GIGA, "fp8": TERA, "link": GIGA, "network": GIGA}


def read_hardware(file: Path) -> dict[str, Accelerator]:
    """The devices of a TOML file in the form of hardware.toml. Raises ValueError naming device and field."""
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no TOML: {error}") from None
    return {name: _device(f"{file}: {name}", name, table) for name, table in tables.items()}


def find_hardware(name: str, more: Path | None = None) -> Accelerator:
    """The device of a name, in `more` or in the table. Raises ValueError for an unknown one."""
    known = read_hardware(TABLE) | (read_hardware(more) if more is not None else {})
    if name not in known:
        raise ValueError(f"--on must be one of {', '.join(sorted(known))}, or of a --hardware FILE, got {name!r}")
    return known[name]


def _device(where: str, name: str, table: object) -> Accelerator:
    if not isinstance(table, dict):
        raise ValueError(f"{where} must be a table [{name}] of numbers")
    known = {field.name for field in fields(Accelerator)} - {"name"}
    if wrong := set(table) - known:
        raise ValueError(f"{where} has an unknown field {min(wrong)}; known: {', '.join(sorted(known))}")
    if missing := {*_SCALES, "devices"} - set(table):
        raise ValueError(f"{where} lacks {min(missing)}")
    values: dict[str, float] = {}
    for key, value in table.items():
        if isinstance(value, bool) != (key == "cpu") or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(f"{where}: {key} must be a number above 0, got {value!r}")
        if key != "cpu" and not value:
            raise ValueError(f"{where}: {key} must be a number above 0, got 0")
        values[key] = value * _SCALES.get(key, 1)
    return Accelerator(
        name,
        values["memory"],
        values["bandwidth"],
        values["fp8"],
        int(values["devices"]),
        values["link"],
        values["network"],
        values.get("price"),
        bool(table.get("cpu", False)),
    )
