"""Which kernels run on this machine: every operation of a tiny model, once, for serving and for training."""

import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsv4.checkpoint import RELEASE, save_checkpoint
from dsv4.kernels import native
from dsv4.kernels.backend import explain
from dsv4.kernels.native import BuildError
from dsv4.kernels.native.build import choose_isa, compiler
from dsv4.model.transformer import Transformer
from dsv4.testing.tiny import tiny_config, tiny_model

TOKENS = torch.arange(40) % 97
CLOSE = 1e-3  # logits of the tiny model differ by less between implementations of the same operations


def kernels() -> dict[str, Any]:
    """Compiler, native kernels, the implementations that ran, and what is wrong with them."""
    found: dict[str, Any] = {
        "compiler": _compiler(),
        "native": native.describe(),
        "available": native.available(),
        "isa": native.isa() if native.available() else None,
        "best_isa": choose_isa(),
        "problems": [],
    }
    compiles = not found["compiler"].startswith("none")
    if not native.available() and compiles and os.environ.get("DSV4_NATIVE") != "0":
        found["problems"].append(f"the native kernels do not compile: {native.why_not()}")
    steps, released = _released()
    found["steps"] = steps
    found["runs"] = {
        "serving, float32": _explained(lambda: _logits(tiny_model())),
        "serving, released weights (FP8 and FP4)": released,
        "training, float32": _explained(lambda: _trained(tiny_model())),
    }
    with torch.inference_mode():
        apart = float((_logits(tiny_model()) - _logits(tiny_model(impl="reference"))).abs().max())
    if not apart < CLOSE:
        found["problems"].append(f"the kernels' logits differ from their definition by {apart:.2g}")
    return found


def _compiler() -> str:
    try:
        path = compiler()
    except BuildError as error:
        return f"none: {error}"
    version = subprocess.run([path, "--version"], capture_output=True, text=True).stdout.splitlines()
    return f"{path}: {version[0]}" if version else path


def _released() -> tuple[str, list[str]]:
    """How an engine runs steps of a model in the released layout, and which kernels its operations choose."""
    from dsv4.api.loading import load

    config = tiny_config(quantized=True, expert_dtype="fp4")
    with tempfile.TemporaryDirectory(prefix="dsv4-doctor-") as place:
        folder = Path(place) / "tiny"
        save_checkpoint(folder, config, tiny_model(config).state_dict(), RELEASE)
        model = load(folder, context_length=256, sequences=1, memory=2**24)
        return model.engine.runner.describe(), _explained(lambda: _logits(model.model))


def _logits(model: Transformer) -> Tensor:
    with torch.no_grad():
        return model.logits(model.hidden(TOKENS, model.pack([len(TOKENS)])))


def _trained(model: Transformer) -> None:
    model.logits(model.hidden(TOKENS, model.pack([len(TOKENS)]))).sum().backward()


def _explained(run: Callable[[], object]) -> list[str]:
    with explain() as explanation:
        run()
    return explanation.lines()
