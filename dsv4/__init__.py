"""DeepSeek-V4, end to end: model, checkpoint format, encoding, engine, server, training."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsv4.cli.local import LocalModel, load

__version__ = "0.1.0"
__all__ = ["LocalModel", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """`dsv4.load` and `dsv4.LocalModel` import torch only when they are first used."""
    if name in ("load", "LocalModel"):
        from dsv4.cli import local

        return getattr(local, name)
    raise AttributeError(f"module 'dsv4' has no attribute {name!r}")
