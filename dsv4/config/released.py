"""The configs of the released shapes, Flash and Pro, which the package carries in `dsv4/configs`."""

from pathlib import Path

from dsv4.config.model import ModelConfig

SHAPES = ("flash", "pro")
FOLDER = Path(__file__).parents[1] / "configs"


def released_config(shape: str) -> ModelConfig:
    """The config of one of SHAPES."""
    return ModelConfig.from_file(FOLDER / f"{shape}.json")
