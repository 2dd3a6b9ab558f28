"""`dsv4 doctor`: what this machine has for dsv4, which kernels run on it, and what would make it faster."""

import json as json_format
from pathlib import Path
from typing import Any

from dsv4.cli.doctor_advice import advice


def doctor(folder: str | None = None, *, json: bool = False) -> None:
    """Look at processor, memory, disk, compiler, GPU and packages, run every kernel once on a tiny model, and say what
    would be faster. Exits with 1 if something is broken.

    Parameters
    ----------
    folder
        Also measure the disk of this model: a checkpoint folder or the name of a pulled model.
    json
        Print one JSON object.
    """
    from dsv4.cli.doctor_kernels import kernels
    from dsv4.cli.doctor_machine import disk, gpu, machine, packages, rates

    facts: dict[str, Any] = {"machine": machine(), "disk": disk()}
    facts["rates"] = rates(_largest(folder))
    facts |= {"gpu": gpu(), "kernels": kernels(), "packages": packages()}
    facts["advice"] = advice(facts)
    facts["problems"] = [*facts["kernels"]["problems"], *facts["disk"]["problems"]]
    if json:
        print(json_format.dumps(facts))
    else:
        for line in _lines(facts):
            print(line)
    if facts["problems"]:
        raise SystemExit(1)


def _largest(folder: str | None) -> Path | None:
    """The largest file of a model, for measuring its disk."""
    if folder is None:
        return None
    from dsv4.cli.plan import find_files

    return find_files(folder).largest


def _lines(facts: dict[str, Any]) -> list[str]:
    """The report, a fact a line."""
    from dsv4.files import counted, size_text

    m, k, g, d, r = (facts[name] for name in ("machine", "kernels", "gpu", "disk", "rates"))
    limit = ", limit of the container" if m["container"] else ""
    total = f" of {size_text(m['memory'])}" if m["memory"] else ""
    speed = f"memory {r['memory'] / 1e9:.1f} GB/s, disk "
    speed += "not measured" if r["disk"] is None else f"{r['disk'] / 1e9:.2f} GB/s"
    speed += " where torch is installed (name a model for its own)" if r["elsewhere"] else ""
    rows = [
        ("system", f"{m['system']}, Python {m['python']}, torch {m['torch']}"),
        ("processor", f"{m['processor']}: {counted(m['usable_cores'], 'core')} of {m['cores']}, load {m['load']}"),
        ("has", ", ".join(m["features"]) or "no vector instructions that the kernels use"),
        ("memory", f"{size_text(m['free'])} free{total}{limit}"),
        ("disk", f"{size_text(d['free'])} free at {d['cache']}"),
        ("reads", speed),
        ("threads", f"{m['threads']} of torch"),
        ("numa", m["numa"]),
        ("gpu", g["text"]),
        ("compiler", k["compiler"]),
        ("kernels", k["native"]),
        ("steps", k["steps"]),
    ]
    lines = [f"{name:<10} {text}" for name, text in rows]
    for title, group in k["runs"].items():
        lines.append(f"\n{title}:")
        lines += [f"  {line}" for line in group]
    lines.append("\npackages:")
    lines += [f"  {_package(row)}" for row in facts["packages"]]
    for title in ("advice", "problems"):
        lines.append(f"\n{title}:")
        lines += [f"  - {line}" for line in facts[title]] or ["  none"]
    return lines


def _package(row: dict[str, Any]) -> str:
    found = ", ".join(f"{name} {version}" for name, version in row["found"].items()) or "none"
    missing = f"; missing: {', '.join(row['missing'])}" if row["missing"] else ""
    return f"{row['extra']} ({row['use']}): {found}{missing}"
