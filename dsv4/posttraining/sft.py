"""Supervised fine-tuning: a run of the trainer that starts from a model and learns the answers of conversations.

What a recipe does not say is filled in here, so that a file of conversations and a folder are enough. The defaults are
for small sets of examples (docs/finetune.md has them measured); a recipe may say all of it.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dsv4.checkpoint.names import RELEASE, Layout
from dsv4.model.transformer import Transformer
from dsv4.posttraining.base_model import BaseModel
from dsv4.training.batch import Totals
from dsv4.training.data import batch_of
from dsv4.training.documents import Document, TokenShard
from dsv4.training.loss import compute_loss
from dsv4.training.qat import FakeQuantised
from dsv4.training.settings import LossWeights

EPOCHS = 8
LONGEST = 4096  # tokens of a packed sequence, where conversations are longer and nothing is said
STEPS = 10  # of an epoch, for small sets
LARGEST_BATCH = 16_384
WARMUP = 0.1  # of the run
# between what nano needs (3e-3 at a width of 128, measured) and what is usual at 4,096 (2e-5)
MOST_RATE, RATE, RATE_EXPONENT = 3e-3, 4.4, -1.5
MOST_LORA_RATE, LORA_TIMES = 1e-2, 10


@dataclass(frozen=True, slots=True)
class SftWishes:
    """What the command says; None = as the recipe or the default says. data: files of conversations. lora: the rank."""

    data: Sequence[Path] = ()
    lora: int | None = None
    epochs: float | None = None
    lr: float | None = None
    length: int | None = None


@dataclass(frozen=True, slots=True)
class DataSize:
    """Tokens of every example of a run's sources."""

    lengths: tuple[int, ...]

    @classmethod
    def of(cls, shards: Sequence[TokenShard]) -> "DataSize":
        return cls(tuple(length for shard in shards for length in shard.lengths.tolist()))

    def within(self, length: int) -> int:
        """Tokens of those that fit into sequences of `length`."""
        return sum(own for own in self.lengths if own <= length)


def with_wishes(raw: Mapping[str, Any], wishes: SftWishes, base: BaseModel, layout: Layout | None) -> dict[str, Any]:
    """A recipe's tables with what the command says and all that the base decides; stages, batch and rates are left to
    `with_schedule`. layout: of the export. Raises ValueError for what is said twice, or not at all."""
    made = dict(raw)
    for flag, value, table in (
        ("--epochs", wishes.epochs, "stages"),
        ("--length", wishes.length, "stages"),
        ("--lr", wishes.lr, "lr"),
    ):
        if value is not None and table in raw:
            raise ValueError(f"{flag}: the recipe has {table}; --set changes its fields")
    made["init"], made["model"] = str(base.folder), base.recipe_fields()
    data: dict[str, Any] = {"pool": 32, **raw.get("data", {})}
    if wishes.data:
        data["sources"] = _sources(wishes.data)
    if not data.get("sources"):
        raise ValueError("--data: no conversations to learn from: name a JSONL file, or data.sources in the recipe")
    made["data"] = {"tokenizer": str(base.folder), **data}
    if wishes.lora is not None:
        made["lora"] = {**raw.get("lora", {}), "rank": wishes.lora}
    adapters = "lora" in made
    # the report names the balancing rule for pre-training; a step of it beside a few examples would move much
    made["optimizer"] = {"kind": "adamw", "decay": 0.0, "balance_speed": 0.0, **raw.get("optimizer", {})}
    numerics = "bf16" if adapters else "fp32"
    # a few examples jump from step to step: what would be a spike of a long run is not one here
    made["run"] = {"recovery": False, "numerics": numerics, **raw.get("run", {})}
    if adapters:
        made["loss"] = {"indexer": 0.0, "balance": 0.0, **raw.get("loss", {})}
    elif layout is RELEASE:
        made.setdefault("qat_from", 0)
    made.setdefault("mtp_weights", [0.1, 0.1])
    made.setdefault("name", f"sft-{data['sources'][0].get('name', 'data')}")
    return made


def with_schedule(raw: Mapping[str, Any], wishes: SftWishes, base: BaseModel, size: DataSize) -> dict[str, Any]:
    """`with_wishes` with stages, batch and learning rate for data of this size, where the recipe has none."""
    made = dict(raw)
    yarn = base.config.yarn is not None
    if "stages" not in made:
        epochs = EPOCHS if wishes.epochs is None else wishes.epochs
        if not size.lengths:
            raise ValueError("stages: missing; sources that are all generators have no end")
        length = wishes.length or -(-min(max(size.lengths), LONGEST) // 64) * 64
        length = min(length, base.config.max_position_embeddings)
        made["stages"] = [{"tokens": max(1, round(size.within(length) * epochs)), "length": length, "yarn": yarn}]
    stages = made["stages"]
    if not isinstance(stages, list) or not stages or not all(_counted(stage) for stage in stages):
        raise ValueError(f"stages: expected a list of tables with tokens and length, got {stages!r:.100}")
    total, longest = (f([stage[name] for stage in made["stages"]]) for f, name in ((sum, "tokens"), (max, "length")))
    if "batch" not in made:
        made["batch"] = {"full": max(longest, min(LARGEST_BATCH, size.within(longest) // STEPS))}
    data = made["data"]
    made["data"] = {"micro": max(2048, longest), **data}
    if "lr" not in made:
        rate = RATE * base.config.hidden_size**RATE_EXPONENT
        rate = min(MOST_LORA_RATE, LORA_TIMES * rate) if "lora" in made else min(MOST_RATE, rate)
        peak, warmup = wishes.lr or rate, round(WARMUP * total)
        made["lr"] = {
            "peak": peak,
            "final": peak / 10,
            "warmup": warmup,
            "decay_from": warmup,
            "decay_to": max(total, warmup),
        }
    return made


def _counted(stage: Any) -> bool:
    """Whether a stage says its tokens and length; the recipe checks the rest."""
    return isinstance(stage, Mapping) and all(isinstance(stage.get(name), int | float) for name in ("tokens", "length"))


def _sources(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Each under the name of its file, with a number where two have the same. Raises ValueError for one file twice."""
    found: dict[str, Path] = {}
    for file in files:
        if file in found.values():
            raise ValueError(f"--data: {file} is there twice")
        plain = "".join(char if char.isalnum() or char in "._-" else "-" for char in file.name.split(".jsonl")[0])
        name = plain = plain.lstrip("._-") or "data"
        number = 1
        while name in found:
            number += 1
            name = f"{plain}-{number}"
        found[name] = file
    return [{"name": name, "kind": "messages", "path": str(file)} for name, file in found.items()]


@torch.no_grad()
def held_out_loss(model: Transformer, shard: TokenShard, *, micro: int, quantised: bool) -> tuple[float, float]:
    """Mean loss and share of right first guesses over the learned tokens of all examples. quantised: with the numbers
    that the release layout will store."""
    groups: list[list[Document]] = [[]]
    for document in map(shard.document, range(shard.count)):
        if groups[-1] and sum(len(d.tokens) for d in (*groups[-1], document)) > micro:
            groups.append([])
        groups[-1].append(document)
    batches = [batch_of(group) for group in groups]
    totals, weights = Totals.of(batches), LossWeights(0.0, 0.0, 0.0)
    loss = right = 0.0
    with FakeQuantised(model) if quantised else nullcontext():
        for batch in batches:
            parts = compute_loss(model, batch.to(model.device), weights=weights, totals=totals).parts
            loss, right = loss + float(parts["next"]), right + float(parts["accuracy"])
    return loss, right
