"""Measured rows: where and when they were measured, as lines on the screen and in a JSON-lines file."""

import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """Where and when a row was measured."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": cpu,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def append_lines(file: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Add measurements to a JSON-lines file, with where and when."""
    with file.open("a", encoding="utf-8") as out:
        for line in lines:
            out.write(json.dumps({**machine(), **line}) + "\n")


def tell_row(row: dict[str, Any], file: Path | None) -> None:
    """Print a row, and add it to a JSON-lines file where one is given."""
    print(row_text(row), flush=True)
    if file is not None:
        append_lines(file, [row])


def row_text(row: dict[str, Any]) -> str:
    """A row as one line for people, four digits of each figure."""
    return " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items())
