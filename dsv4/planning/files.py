"""What is known of a model before it is loaded: its config, and the tensors of its files by their headers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dsv4.checkpoint import (
    BF16,
    RELEASE,
    RELEASE_FP8,
    CheckpointReader,
    Layout,
    TensorSpec,
    detect_layout,
    expected_tensors,
    packed_problems,
    raise_problems,
)
from dsv4.config import ModelConfig


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model by config and headers. copied: tensors that their files do not align, which loading copies. largest: the
    largest file, None where no files are there."""

    name: str
    config: ModelConfig
    layout: Layout
    specs: Mapping[str, TensorSpec]
    copied: frozenset[str] = frozenset()
    largest: Path | None = None

    @classmethod
    def of_folder(cls, name: str, config: ModelConfig, reader: CheckpointReader) -> "ModelFiles":
        """config: as `open_folder` adjusted it to the files. Raises CheckpointError for weights that must be converted
        before they can be loaded."""
        raise_problems(packed_problems(reader))
        names = reader.names()
        return cls(
            name,
            config,
            detect_layout(reader, config),
            {name: reader.spec(name) for name in names},
            frozenset(name for name in names if not reader.in_place(name)),
            max({reader.file_of(name) for name in names}, key=lambda file: file.stat().st_size),
        )

    @classmethod
    def of_config(cls, name: str, config: ModelConfig) -> "ModelFiles":
        """A model whose files are not here, in the layout that its config says."""
        layout = layout_of(config)
        return cls(name, config, layout, expected_tensors(config, layout))

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(spec.nbytes for spec in self.specs.values())


def layout_of(config: ModelConfig) -> Layout:
    """The layout that a config says its files have."""
    if not config.quantized:
        return BF16
    return RELEASE_FP8 if config.expert_dtype == "fp8" else RELEASE
