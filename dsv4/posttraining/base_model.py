"""The model that a fine-tuning run starts from: any folder that loads, or a finished run."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from dsv4.checkpoint import CheckpointReader, detect_layout, open_folder, state_for
from dsv4.checkpoint.names import Layout
from dsv4.config import ModelConfig
from dsv4.model.layers import Numerics
from dsv4.model.transformer import Transformer
from dsv4.training.recipe_fields import strictly
from dsv4.training.settings import FROM_ELSEWHERE
from dsv4.training.states import PREVIOUS_FILE, STATE_FILE, latest_of_ranks

_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16
# fields that no weight's shape depends on, so a run may train with others than the folder's
CHANGEABLE = ("sliding_window", "index_topk")
# what a folder holds besides its tensors that the fine-tuned model needs too; its card and figures are the base's own
KEPT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
)


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A folder that is ready to be trained on. layout: how it stores its weights. notes: sentences a user should see
    once."""

    folder: Path
    config: ModelConfig
    reader: CheckpointReader
    layout: Layout
    notes: tuple[str, ...]

    @classmethod
    def open(cls, path: Path) -> "BaseModel":
        """A checkpoint folder, or the model of a finished run's folder. Raises ValueError or FileNotFoundError naming
        file, field or tensor."""
        folder = path.expanduser()
        if not (folder / "config.json").exists():
            if (folder / "model" / "config.json").exists():
                folder = folder / "model"
            elif (folder / "adapter").exists():
                merge = f"dsv4 convert BASE NEW --adapter {path / 'adapter'}"
                raise ValueError(f"--init {path}: holds an adapter and no model; `{merge}` makes a model of both")
            elif any((folder / name).exists() for name in (STATE_FILE, PREVIOUS_FILE)) or latest_of_ranks(folder):
                raise ValueError(f"--init {path}: holds a run that is not finished (there is no {path / 'model'})")
        opened = open_folder(folder)
        layout = detect_layout(opened.reader, opened.config)
        return cls(folder, opened.config, opened.reader, layout, opened.notes)

    def changed(self, table: object) -> "BaseModel":
        """The same weights with other values of CHANGEABLE, a recipe's table `model`. Raises ValueError for any other
        field, which comes from the folder, and for values that ModelConfig refuses."""
        if not isinstance(table, Mapping):
            raise ValueError(f"model: expected a table, got {table!r:.100}")
        for field in table:
            if field not in CHANGEABLE:
                known = " and ".join(CHANGEABLE)
                raise ValueError(f"model.{field}: comes from the folder that init names; a recipe may change {known}")
        raw = TypeAdapter(ModelConfig).dump_python(self.config, mode="json")
        return replace(self, config=strictly(ModelConfig, {**raw, **table}, "model"))

    def check_apart(self, place: Path) -> None:
        """Raise ValueError where a run in the folder `place` would write over this model."""
        own, other = place.resolve(), self.folder.resolve()
        if own == other or own in other.parents or other in own.parents:
            raise ValueError(
                f"--folder {place}: the run would write into the model it starts from, {self.folder}; name another"
            )

    @property
    def digest(self) -> str:
        """The same for the same weights, wherever they lie: config, names and sizes of the files, and pieces of them,
        since all of a large model would take minutes to read."""
        found = hashlib.blake2b((self.folder / "config.json").read_bytes(), digest_size=16)
        for file in sorted({self.reader.file_of(name) for name in self.reader.names()}):
            size = file.stat().st_size
            found.update(f"{file.name} {size}".encode())
            with file.open("rb") as stream:
                for piece in range(_SAMPLES):
                    stream.seek(piece * max(0, size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                    found.update(stream.read(_SAMPLE_BYTES))
        return found.hexdigest()

    def recipe_fields(self) -> dict[str, Any]:
        """The table `model` of a recipe for this model."""
        raw = TypeAdapter(ModelConfig).dump_python(self.config, mode="json")
        return {field.name: raw[field.name] for field in fields(ModelConfig) if field.name not in FROM_ELSEWHERE}

    def files(self) -> dict[str, bytes]:
        """The small files that an export of the trained model takes over."""
        found = {name: self.folder / name for name in KEPT_FILES}
        return {name: file.read_bytes() for name, file in found.items() if file.is_file()}

    def trainable(self, numerics: Numerics) -> Transformer:
        """A model of its own with these weights, FP8 and FP4 multiplied out: every parameter can be trained."""
        model = Transformer(self.config, numerics)
        self.fill(model)
        return model

    @torch.no_grad()
    def fill(self, model: Transformer) -> None:
        """Copy these weights into a model of this config, FP8 and FP4 multiplied out."""
        own = model.state_dict()
        for name, value in state_for(self.config, self.reader, "fp32"):
            own[name].copy_(value)
        self.reader.release()
