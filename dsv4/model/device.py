"""The device that a model computes on: the CPU, or a CUDA card. No part of this has run on a card yet.

On a card the model runs op by op in plain torch: native kernels are for the CPU alone, and every kernel refuses inputs
of another device.
"""

import torch

from dsv4.config.device import check_device


def choose_device(device: str = "cpu", name: str = "device") -> torch.device:
    """cpu; cuda, this process' card (the first one, unless torch.cuda.set_device said another); cuda:N; auto: as cuda
    where torch can use a card, else the CPU. name: of the setting, for messages.

    Raises ValueError for another name and, with the reason, for a card that torch cannot use. A card multiplies float32
    in float32 (no TF32), and adds up products of bfloat16 in float32: both are torch's settings for the whole process.
    """
    check_device(device, name)
    reason = None if device == "cpu" else _why_no_card()
    if device == "cpu" or (device == "auto" and reason is not None):
        return torch.device("cpu")
    if reason is not None:
        raise ValueError(f"{name} {device!r} cannot be used: {reason}")
    number = int(device.partition(":")[2]) if ":" in device else torch.cuda.current_device()
    count = torch.cuda.device_count()
    if number >= count:
        raise ValueError(f"{name} must be at most cuda:{count - 1}: torch sees {count} card(s), got {device!r}")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    return torch.device("cuda", number)


def _why_no_card() -> str | None:
    """The reason why torch can use no card here; None if it can."""
    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} is a build without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no card that its driver can use"
    return None


def describe_device(device: torch.device) -> str:
    """The device in words: "cpu", or "cuda:0, NVIDIA H100 80GB HBM3"."""
    return str(device) if device.type != "cuda" else f"{device}, {torch.cuda.get_device_name(device)}"


def card_memory(device: torch.device) -> int:
    """Bytes of a card's whole memory."""
    return torch.cuda.get_device_properties(device).total_memory


def free_card_memory(device: torch.device) -> int:
    """Bytes of a card's memory that nothing uses yet, those that torch keeps for reuse included."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given: before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
