"""`dsv4 train` for a recipe with a table [draft]: a draft head beside a model that stays as it is, bit for bit."""

from pathlib import Path
from typing import TYPE_CHECKING

from dsv4.checkpoint import CheckpointReader, expected_tensors, shard_of
from dsv4.checkpoint.convert import convert_parameter
from dsv4.checkpoint.names import Layout
from dsv4.checkpoint.quantize import store_parameter, write_configs
from dsv4.checkpoint.writer import CheckpointWriter
from dsv4.files import whole_folder
from dsv4.parameters import parameters
from dsv4.posttraining.base_model import BaseModel
from dsv4.training.data import open_sources
from dsv4.training.draft_run import DraftTrainer, draft_model, head_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dsv4.config import ModelConfig
    from dsv4.encoding import Tokenizer
    from dsv4.training.recipe import Recipe


def base_of(recipe: "Recipe", place: Path) -> BaseModel:
    """The model that the recipe names. Raises ValueError if the run would write into it."""
    base = BaseModel.open(Path(recipe.init or ""))
    base.check_apart(place)
    return base


def layout_for(base: BaseModel, export: str) -> str:
    """The layout of the export: that of the model, because its own tensors are copied."""
    return base.layout.name if export == "auto" else export


def draft_trainer(recipe: "Recipe", base: BaseModel, place: Path, tokenizer: "Tokenizer") -> DraftTrainer:
    """The trainer of a recipe with a draft head, on one process."""
    assert recipe.draft is not None
    sources = open_sources(recipe, tokenizer, place / "data")
    model = draft_model(base.config, recipe.draft, base.reader, recipe.seed)
    return DraftTrainer(recipe, place, tokenizer, sources, model=model, base=base.digest)


def export_with_head(place: Path, base: BaseModel, trainer: DraftTrainer, layout: Layout) -> Path:
    """Write PLACE/model: the model's own tensors as they are stored (in its own layout bit for bit), and the head."""
    with whole_folder(place / "model") as folder:
        _write(folder, base.reader, trainer.model.config, head_of(trainer.weights()), layout, base.files())
    return place / "model"


def _write(
    folder: Path,
    reader: CheckpointReader,
    config: "ModelConfig",
    head: "Mapping[str, Tensor]",
    layout: Layout,
    files: "Mapping[str, bytes]",
) -> None:
    with CheckpointWriter(folder, expected_tensors(config, layout), lambda name: shard_of(name, config)) as writer:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        write_configs(folder, config, layout)
        for parameter in parameters(config):
            if parameter.prediction:
                stored = store_parameter(parameter, head[parameter.name], layout)
            else:
                stored = convert_parameter(parameter, reader, layout)
            for name, tensor in stored.items():
                writer.write(name, tensor)
