"""DeepSeek-V4, end to end: model, checkpoint format, encoding, engine, server, training."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsv4.api.loading import load
    from dsv4.api.local_model import LocalModel

__version__ = "0.1.0"
__all__ = ["LocalModel", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """`dsv4.load` and `dsv4.LocalModel` import torch only when they are first used."""
    if name == "load":
        from dsv4.api.loading import load

        return load
    if name == "LocalModel":
        from dsv4.api.local_model import LocalModel

        return LocalModel
    raise AttributeError(f"module 'dsv4' has no attribute {name!r}")
