"""Processor, memory, disk, GPU and packages of this machine, for `dsv4 doctor`."""

import os
import platform
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from dsv4.kernels.native.build import cache_folder, machine_features
from dsv4.planning.memory import CGROUP, free_memory, limited, total_memory
from dsv4.planning.placement import nodes_text
from dsv4.planning.rates import measure
from dsv4.planning.topology import cpu_quota, read_topology

# of /proc/cpuinfo; kernels use all but AMX, which tells how new a processor is
FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512vbmi",
    "amx_int8",
    "amx_bf16",
)
USES = {
    "hub": "dsv4 pull",
    "modelscope": "dsv4 pull --source modelscope",
    "docs": "python -m deploy.build_docs",
    "gguf": "dsv4 convert of GGUF files with K- and I-quants",
    "eval": "dsv4 eval",
    "otel": "dsv4 serve --otel",
    "kernels": "compiled kernels, for a machine without a compiler",
    "track": "curves of a training run in other programs",
    "test": "the tests, and --peer of dsv4 bench",
}


def machine() -> dict[str, Any]:
    """System, processor and memory."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(CGROUP)
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "usable_cores": usable if quota is None else max(1, min(usable, int(quota))),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "features": [name for name in FEATURES if name in machine_features()],
        "threads": torch.get_num_threads(),
        "memory": total_memory(),
        "free": free_memory(),
        "container": limited(),
        "numa": nodes_text(read_topology()),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def disk() -> dict[str, Any]:
    """The place of compiled kernels, its free bytes, and whether it can be written."""
    cache = cache_folder()
    there = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    problems = [] if os.access(there, os.W_OK) else [f"{there} cannot be written: compiled kernels have no place"]
    return {"cache": str(cache), "free": shutil.disk_usage(there).free, "problems": problems}


def rates(file: Path | None) -> dict[str, Any]:
    """Bytes per second of memory, and of the disk of `file`; without one, of the disk on which torch is installed."""
    found = measure(file, free_memory())
    return {"memory": found.memory, "disk": found.disk, "elsewhere": found.elsewhere}


def gpu() -> dict[str, Any]:
    """The cards that torch can use, and whether the system has a driver for some."""
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    devices: list[dict[str, Any]] = []
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(i)
            devices.append({"name": card.name, "memory": card.total_memory})
    shown = ", ".join(f"{card['name']} ({card['memory'] / 2**30:.0f} GiB)" for card in devices)
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
    text = shown or f"none that torch can use ({cuda}, {'an NVIDIA driver' if driver else 'no NVIDIA driver'})"
    return {"driver": driver, "cuda": torch.version.cuda, "devices": devices, "text": text}


def packages() -> list[dict[str, Any]]:
    """The optional packages by extra: those that are here, and those that are not."""
    try:
        required = metadata.requires("dsv4") or []
    except metadata.PackageNotFoundError:  # run from its sources
        required = []
    extras: dict[str, list[str]] = {}
    for line in required:
        match = re.match(r"([\w.-]+)[^;]*;.*extra\s*==\s*['\"]([\w-]+)['\"]", line)
        if match:
            extras.setdefault(match[2], []).append(match[1])
    rows = []
    for extra, names in extras.items():
        versions = {name: _version(name) for name in names}
        found = {name: version for name, version in versions.items() if version}
        missing = [name for name in names if name not in found]
        rows.append({"extra": extra, "use": USES[extra], "found": found, "missing": missing})
    return rows


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
