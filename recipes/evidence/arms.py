"""The comparisons: what is held equal, what differs, what is measured. One entry is one page of docs/evidence."""

import re
from dataclasses import dataclass

from recipes.evidence.grade import Reads

TEXT, RETRIEVAL, SORTING = (f"recipes/evidence/{name}.toml" for name in ("text", "retrieval", "sorting"))


@dataclass(frozen=True, slots=True)
class Arm:
    """A recipe and its changes. reads: what it sees of a document when it is graded (grade.retrieval), if that differs
    from training."""

    name: str
    recipe: str
    changes: tuple[str, ...] = ()
    reads: Reads = "as trained"
    longest: int = 2**20  # graded up to documents of this many tokens


@dataclass(frozen=True, slots=True)
class Comparison:
    """measure: log fields averaged over the last fifth of the tokens. grade: also graded on fresh documents."""

    title: str
    question: str
    arms: tuple[Arm, ...]
    measure: tuple[str, ...] = ("next",)
    grade: bool = False
    seeds: tuple[int, ...] = (1, 2)


def arms(recipe: str, **changes: tuple[str, ...]) -> tuple[Arm, ...]:
    return tuple(Arm(_title(name), recipe, change) for name, change in changes.items())


def _title(name: str) -> str:
    """Muon_4e_3 -> Muon 4e-3"""
    return re.sub(r"(\de) (\d)", r"\1-\2", name.replace("_", " "))


ADAMW = ("optimizer.kind=adamw",)
NO_CSA = ("model.compress_ratios=[0,0,0]", "stages.1.phase=dense", "stages.1.lr=1e-2")  # nothing to warm up
MTP = ("model.num_nextn_predict_layers=1", "model.compress_ratios=[0,4,16,4,0]")
COMPARISONS: dict[str, Comparison] = {
    "muon": Comparison(
        "Muon against AdamW",
        "Does Muon (Algorithm 1) reach a lower loss than AdamW on the same tokens?",
        arms(
            TEXT,
            Muon_4e_3=(),
            Muon_1e_2=("lr.peak=1e-2", "lr.final=1e-3"),
            AdamW_1e_3=(*ADAMW, "lr.peak=1e-3", "lr.final=1e-4"),
            AdamW_4e_3=ADAMW,
            AdamW_1e_2=(*ADAMW, "lr.peak=1e-2", "lr.final=1e-3"),
        ),
    ),
    "connections": Comparison(
        "Hyper-connections against one residual stream",
        "Does mHC with four streams reach a lower loss than one? With one stream the mixing matrix is 1, and what is "
        "left is a residual connection with learned gates.",
        arms(TEXT, four_streams=(), one_stream=("model.hc_mult=1",)),
        measure=("next", "grad_norm"),
        seeds=(1, 2, 3),
    ),
    "prediction": Comparison(
        "The prediction block",
        "Does predicting the token after next help the next one? Tokens are equal; the block costs time.",
        arms(TEXT, without=(), with_MTP=MTP),
        measure=("next", "mtp"),
        seeds=(1, 2, 3),
    ),
    "balance": Comparison(
        "Balance without a loss",
        "Does moving the router's biases keep the load even? max_violation is the largest load of an expert over the "
        "mean, minus 1, in the worst layer.",
        arms(
            TEXT,
            bias_and_loss=(),
            bias_only=("loss.balance=0.0",),
            neither=("optimizer.balance_speed=0.0", "loss.balance=0.0"),
        ),
        measure=("next", "max_violation"),
    ),
    "attention": Comparison(
        "Compressed attention against a window alone and against dense attention",
        "A window cannot see the needles of a document 16 times as long; compressed attention should, at a fraction of "
        "dense attention's entries.",
        (
            Arm("CSA", RETRIEVAL),
            Arm("CSA reading every entry", RETRIEVAL, reads="every entry", longest=2**18),
            Arm("window only", RETRIEVAL, NO_CSA, longest=2**16),
            Arm("dense", RETRIEVAL, (*NO_CSA, "model.sliding_window=4096"), "the whole window", 2**14),
        ),
        measure=("next", "accuracy"),
        grade=True,
    ),
    "indexer": Comparison(
        "The indexer's loss",
        "Top-k returns integers: without a loss of its own the indexer never learns. recall_mass is the share of the "
        "dense attention's mass that the choice finds.",
        (Arm("with its loss", RETRIEVAL), Arm("without", RETRIEVAL, ("loss.indexer=0.0",), longest=2**16)),
        measure=("accuracy", "recall_mass", "recall_entries"),
        grade=True,
    ),
    "quantised": Comparison(
        "Quantisation-aware training",
        "What does storing the model in FP8 and FP4 cost, with and without training for it in the last quarter?",
        arms(SORTING, trained_for_it=("qat_from=180_000",), not_trained_for_it=()),
        measure=("next", "accuracy"),
        grade=True,
    ),
}
