"""What would make dsv4 faster on a machine, from the facts of `dsv4 doctor`."""

import os
from typing import Any


def advice(facts: dict[str, Any]) -> list[str]:
    """One sentence for each thing that a user can change."""
    machine, kernels, gpu = facts["machine"], facts["kernels"], facts["gpu"]
    found: list[str] = []
    if not kernels["available"]:
        if os.environ.get("DSV4_NATIVE") == "0":
            found.append("DSV4_NATIVE=0 turns the native kernels off: unset it")
        elif kernels["compiler"].startswith("none"):
            found.append("install a C++ compiler (g++ or clang): without it everything runs in plain torch, far slower")
    elif kernels["isa"] != kernels["best_isa"]:
        found.append(f"DSV4_ISA={kernels['isa']} is set, and this machine has {kernels['best_isa']}: unset it")
    if machine["threads"] < machine["usable_cores"]:
        found.append(
            f"torch uses {machine['threads']} of {machine['usable_cores']} cores: unset OMP_NUM_THREADS, or give "
            f"--threads {machine['usable_cores']}"
        )
    if machine["threads"] > machine["usable_cores"]:
        found.append(
            f"torch uses {machine['threads']} threads on {machine['usable_cores']} cores: give "
            f"--threads {machine['usable_cores']}"
        )
    if machine["load"] is not None and machine["load"] > 1.5 * machine["cores"]:
        found.append(
            f"other programs keep the cores busy (load {machine['load']:.1f} on {machine['cores']} cores): "
            "rates that are measured now are too low"
        )
    if gpu["driver"] and not gpu["devices"]:
        found.append("there is an NVIDIA driver, but this torch has no CUDA: install torch's CUDA build to use the GPU")
    if facts["rates"]["disk"] is not None and facts["rates"]["disk"] < 1e9:
        which = "on which torch is installed" if facts["rates"]["elsewhere"] else "of this model"
        found.append(f"the disk {which} is slow for experts that do not fit into memory: an NVMe disk reads faster")
    return found
