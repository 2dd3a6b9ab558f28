"""The largest memory of a stretch of work. Loads torch only for a card."""

import resource
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def reset_peak(device: "torch.device | None" = None) -> None:
    """Start measuring the largest memory anew: of a card, or of the process, where the system can (Linux)."""
    if device is not None and device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: "torch.device | None" = None) -> int:
    """The largest memory since `reset_peak`: of this process's tensors on a card, else its resident memory, which
    counts since the process started where `reset_peak` has no effect."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
