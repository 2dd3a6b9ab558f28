"""Run comparisons and write their pages.

    python -m recipes.corpus && python -m recipes.evidence.run muon [connections ...] [--pages-only]

Each arm and seed has a folder of its own under runs/evidence and resumes there; finished ones are not run again, and
comparisons that share an arm share its run.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from dsv4.checkpoint import save_checkpoint
from dsv4.checkpoint.names import LAYOUTS
from dsv4.encoding import Tokenizer, train_bpe
from dsv4.training.data import open_sources
from dsv4.training.logbook import Logbook, read_log
from dsv4.training.recipe import Recipe
from dsv4.training.run_lock import RunLock
from dsv4.training.source_texts import files_of, texts_of
from dsv4.training.states import remove_states
from dsv4.training.trainer import Trainer
from recipes.corpus import gather
from recipes.evidence import grade
from recipes.evidence.arms import COMPARISONS, RETRIEVAL, SORTING, TEXT, Arm, Comparison
from recipes.evidence.page import write_page

RUNS = Path("runs/evidence")
# tokens, documents of sixteen queries
LENGTHS = ((256, 12), (1024, 12), (4096, 12), (16384, 8), (65536, 6), (262144, 3), (1048576, 2))


def tokenizer_for(recipe: Recipe) -> Tokenizer:
    """The recipe's tokenizer; the small one for these comparisons is trained when it is missing."""
    folder = Path(recipe.data.tokenizer or "")
    if not (folder / "tokenizer.json").exists():
        gather(["stdlib"])
        source = Recipe.from_file(TEXT).data.sources[0]
        train_bpe(texts_of(source, files_of(source)), 512, folder)
    return Tokenizer.load(folder)


def folder_of(arm: Arm, seed: int) -> Path:
    """Named by what the run is."""
    digest = hashlib.blake2b(f"{Path(arm.recipe).read_text()}{arm.changes}{seed}".encode(), digest_size=6)
    return RUNS / f"{Path(arm.recipe).stem}-{digest.hexdigest()}"


def train(arm: Arm, seed: int, folder: Path) -> dict[str, Any]:
    """One run to its end: CPU minutes, and how it was made."""
    done = folder / "done.json"
    if done.exists():
        return json.loads(done.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    with RunLock(folder):
        return _train(arm, seed, folder)


def _train(arm: Arm, seed: int, folder: Path) -> dict[str, Any]:
    recipe = Recipe.from_file(arm.recipe, [*arm.changes, f"seed={seed}"])
    tokenizer = tokenizer_for(recipe)
    trainer = Trainer(recipe, folder, tokenizer, open_sources(recipe, tokenizer, RUNS / "data"))
    log = Logbook(folder / "log.jsonl", trainer.step)
    spent, told = time.process_time(), 0.0
    for record in trainer.run():
        log.write(record.to_dict())
        if time.monotonic() - told > 20:
            told = time.monotonic()
            print(f"{arm.name} {folder.name}: {record.tokens:,} tokens  {record.summary()}", flush=True)
    log.close()
    state = trainer.model.state_dict()
    text_side = {
        n: (Path(str(recipe.data.tokenizer)) / n).read_bytes() for n in ("tokenizer.json", "tokenizer_config.json")
    }
    save_checkpoint(folder / "fp32", trainer.model.config, state, LAYOUTS["fp32"], extra_files=text_side)
    if arm.recipe == SORTING:
        config = trainer.model.config.with_changes(quantized=True, expert_dtype="fp4")
        save_checkpoint(folder / "release", config, state, LAYOUTS["release"], extra_files=text_side)
    figures = {
        "cpu_minutes": (time.process_time() - spent) / 60,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "tokens": trainer.tokens,
    }
    (folder / "done.json").write_text(json.dumps(figures))
    remove_states(folder)
    return figures


def graded(arm: Arm, folder: Path, lengths: Sequence[tuple[int, int]]) -> dict[str, list[int]]:
    """Right and asked by question; kept beside the run."""
    file = folder / ("grades.json" if arm.reads == "as trained" else f"grades {arm.reads}.json")
    known: dict[str, list[int]] = json.loads(file.read_text()) if file.exists() else {}
    if arm.recipe == RETRIEVAL:
        wanted = {
            f"{n:,} tokens": (lambda n=n, d=d: grade.retrieval(folder / "fp32", n, d, reads=arm.reads))
            for n, d in lengths
            if n <= arm.longest
        }
    else:
        forms = {
            "fp32": ("fp32", "fp32"),
            "FP8 + FP4, computed in fp32": ("release", "fp32"),
            "FP8 + FP4, release numerics": ("release", "release"),
        }
        wanted = {k: (lambda f=f, m=m: grade.sorting(folder / f, m)) for k, (f, m) in forms.items()}
    for name, run in wanted.items():
        if name not in known:
            known[name] = list(run())
            print(f"{arm.name} {folder.name}: {name}: {known[name][0]}/{known[name][1]}", flush=True)
            file.write_text(json.dumps(known))
    return known


def tail(lines: list[dict[str, Any]], name: str) -> float | None:
    """A field's mean over the last fifth of the tokens."""
    last = lines[-1]["tokens"]
    values = [x[name] for x in lines if name in x and x["tokens"] >= 0.8 * last and not x["spike"]]
    return mean(values) if values else None


def run(
    name: str, comparison: Comparison, lengths: Sequence[tuple[int, int]], seeds: Sequence[int], pages_only: bool
) -> None:
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in sorted({*comparison.seeds, *seeds}):
        for arm in comparison.arms:
            folder = folder_of(arm, seed)
            only_shown = pages_only or (seeds and seed not in seeds)
            if only_shown and not (folder / "done.json").exists():
                continue
            figures = train(arm, seed, folder)
            lines = list(read_log(folder / "log.jsonl"))
            trained_so = arm.reads != "every entry"  # else the figures of training are another arm's
            measured = {field: tail(lines, field) if trained_so else None for field in comparison.measure}
            asked = () if only_shown and arm.recipe == RETRIEVAL else lengths
            grades = graded(arm, folder, asked) if comparison.grade else {}
            results.setdefault(arm.name, []).append(
                {"seed": seed, "measured": measured, "grades": grades, "lines": lines, **figures}
            )
            write_page(Path("docs/evidence"), name, comparison, results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(COMPARISONS), metavar="|".join(COMPARISONS))
    parser.add_argument("--pages-only", action="store_true", help="write the pages of what has been run")
    parser.add_argument("--longest", type=int, default=2**16, help="grade retrieval up to this many tokens")
    parser.add_argument("--seeds", type=int, nargs="+", default=(), help="instead of the comparison's own")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    asked = [x for x in LENGTHS if x[0] <= options.longest]
    for wanted in options.names:
        run(wanted, COMPARISONS[wanted], asked, options.seeds, options.pages_only)
