"""A model's folder: its config adjusted to the files, and notes on files that are not used."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from dsv4.checkpoint.inventory import adapter_files, describe_adapter
from dsv4.checkpoint.reader import CheckpointReader
from dsv4.config import ModelConfig


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder that is ready to be loaded. notes: sentences a user should see once."""

    config: ModelConfig
    reader: CheckpointReader
    notes: tuple[str, ...]


def open_folder(path: str | Path) -> ModelFolder:
    """Read a folder's config and the headers of its files.

    Raises FileNotFoundError or ValueError (CheckpointError), naming file, line, field or tensor.
    """
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not (folder / "config.json").exists():
        CheckpointReader(folder)  # the folder's content explains more than the name of the missing file
    config = ModelConfig.from_file(folder)
    reader = CheckpointReader(folder)
    config, notes = settle_config(config, reader)
    return ModelFolder(config, reader, (*notes, *left_out_notes(reader), *adapter_notes(folder)))


def settle_config(config: ModelConfig, reader: CheckpointReader) -> tuple[ModelConfig, list[str]]:
    """The config without parts that the files do not hold. A model without its prediction block or draft
    stages gives the same answers."""
    stored = any(name.startswith("mtp.") for name in reader.names())
    draft = "mtp.0.main_proj.weight" in reader
    if config.dspark:
        if draft:
            return config, []
        why = "mtp.* does not hold the draft stages of the config (dspark_*)" if stored else "no draft stages (mtp.*)"
        return config.without_prediction(), [f"{why}: loaded without them"]
    if config.num_nextn_predict_layers and not stored:
        return config.without_prediction(), ["no tensors of the prediction block (mtp.*): loaded without it"]
    if config.num_nextn_predict_layers and draft:
        note = "mtp.* holds draft stages (DSpark), but the config has no dspark_* keys: loaded without them"
        return config.without_prediction(), [note]
    if stored and not config.num_nextn_predict_layers:
        return config, ["mtp.* is not loaded: the config has no prediction block"]
    return config, []


def left_out_notes(reader: CheckpointReader) -> list[str]:
    """Which tensors of the files no text model uses: one sentence for each kind."""
    counts = Counter(reader.left_out.values())
    return [f"{reader.folder}: {reason} ({count} tensors)" for reason, count in sorted(counts.items())]


def adapter_notes(folder: Path) -> list[str]:
    """Whether an adapter lies beside the model."""
    if not adapter_files(folder):
        return []
    return [f"{describe_adapter(folder)} that is not applied: --adapter uses it"]
