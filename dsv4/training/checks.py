"""Checks of a whole run before its first step: shapes, tokenizer, memory, disk space, data."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from dsv4.checkpoint import check_shapes, expected_tensors
from dsv4.checkpoint.names import LAYOUTS, RELEASE, Layout
from dsv4.checkpoint.quantize import config_for
from dsv4.config import ModelConfig
from dsv4.model import accounting
from dsv4.model.device import card_memory, choose_device
from dsv4.training.data import FIM_TOKENS
from dsv4.training.documents import Codec, function_of
from dsv4.training.recipe import Recipe
from dsv4.training.settings import OptimizerSettings
from dsv4.training.source_texts import files_of
from dsv4.training.states import PREVIOUS_FILE, STATE_FILE


@dataclass(frozen=True, slots=True)
class StorageNeeds:
    """Bytes. state: one saved state. memory: weights, gradients, optimiser states and the snapshots kept against
    spikes, without activations. model: the export, 0 for none. reference: one saved reference of a KL, 0 for none."""

    state: int
    memory: int
    model: int
    reference: int = 0

    @property
    def disk(self) -> int:
        """Two states that are kept, one being written, as many references, the export."""
        return 3 * (self.state + self.reference) + self.model


def layout_of(recipe: Recipe, export: str) -> Layout | None:
    """The layout of the finished model. auto: the released one after quantisation-aware training, else bf16."""
    if export == "auto":
        export = "release" if recipe.qat_from is not None else "bf16"
    return None if export == "none" else LAYOUTS[export]


def needs_of(recipe: Recipe, config: ModelConfig, layout: Layout | None) -> StorageNeeds:
    """Memory and disk space of a run in one process, as arithmetic."""
    numbers, state = state_of(config, recipe.optimizer, recipe.run.numerics)
    copies = recipe.recovery.snapshots if recipe.run.recovery else 0
    memory = state + 4 * numbers + copies * state
    return StorageNeeds(state, memory, 0 if layout is None else model_bytes(config, layout))


def state_of(config: ModelConfig, optimizer: OptimizerSettings, numerics: str) -> tuple[int, int]:
    """Numbers of a model that learns, and bytes of its saved state."""
    p = accounting.parameters(config)
    numbers = p.total + p.mtp
    # AdamW keeps two numbers a weight, Muon one; the vocabulary is AdamW's
    moments = 2 * numbers if optimizer.kind == "adamw" else numbers + p.embedding + p.head
    return numbers, 4 * (numbers + moments) + (2 * numbers if numerics == "bf16" else 0)


def model_bytes(config: ModelConfig, layout: Layout) -> int:
    """Bytes of all tensors of a model folder."""
    return sum(spec.nbytes for spec in expected_tensors(config_for(config, layout), layout).values())


def check_sources(recipe: Recipe) -> None:
    """Raise ValueError naming a source whose files or function are not there. Reads nothing."""
    for source in recipe.data.sources:
        if source.kind == "generator":
            function_of(source)
        else:
            files_of(source)


def check_model(recipe: Recipe, vocabulary: int, layout: Layout | None) -> ModelConfig:
    """The run's model. Raises ValueError for sizes that quantised training or the export cannot hold, and for weights
    that the memory of this machine, or of the card, cannot."""
    config = recipe.config(vocabulary)
    device = choose_device(recipe.run.device, "run.device")
    card = device.type == "cuda"
    memory = card_memory(device) if card else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = needs_of(recipe, config, None).memory
    if recipe.scale.world == 1 and needed > memory:
        raise ValueError(
            f"model: weights, gradients, optimiser states and {recipe.recovery.snapshots} snapshots need "
            f"{size(needed)}, {device if card else 'this machine'} has {size(memory)} of memory"
        )
    try:
        check_shapes(config, layout=layout, release_numerics=recipe.qat_from is not None)
        if recipe.qat_from is not None:
            check_shapes(config, layout=RELEASE)
    except ValueError as error:
        raise ValueError(f"model: {error}") from None
    return config


def check_codec(recipe: Recipe, codec: Codec) -> None:
    """Raise ValueError for a tokenizer that lacks tokens which the recipe uses."""
    if not recipe.data.fim:
        return
    for token in FIM_TOKENS:
        try:
            codec.token_id(token)
        except ValueError:
            raise ValueError(f"data.fim needs the token {token}, which the tokenizer does not have") from None


def check_room(folder: Path, needs: StorageNeeds) -> None:
    """Raise ValueError if the disk has no room for the states and the model of the run. Token shards do not count."""
    made = (folder / STATE_FILE, folder / PREVIOUS_FILE, *folder.glob("reference-*.pt"))
    there = sum(file.stat().st_size for file in made if file.exists())
    free = shutil.disk_usage(folder).free
    wanted = max(0, needs.disk - there)
    if wanted > free:
        references = f", three references of {size(needs.reference)}" if needs.reference else ""
        raise ValueError(
            f"{folder}: the run needs {size(wanted)} of room (three states of {size(needs.state)}{references}, a model "
            f"of {size(needs.model)}), the disk has {size(free)}; --folder names another place"
        )


def remarks(recipe: Recipe) -> list[str]:
    """Warnings about settings that are valid but probably a mistake."""
    schedule, lr = recipe.schedule, recipe.lr
    found = []
    if lr.warmup >= schedule.tokens:
        found.append(f"lr.warmup {lr.warmup:,} is not over when the run ends after {schedule.tokens:,} tokens")
    elif lr.decay_to > schedule.tokens and all(stage.lr is None for stage in recipe.stages[-1:]):
        rate = lr.at(schedule.tokens - 1, 1)
        found.append(
            f"lr.decay_to {lr.decay_to:,} lies beyond the run's {schedule.tokens:,} tokens: it ends at {rate:.2e}"
        )
    return found


def size(count: float) -> str:
    """A number of bytes as text, with its unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
