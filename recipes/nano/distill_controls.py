"""Distillation beside its controls: one student learns from several teachers in each of the ways that are in use, from
the same prompts in as many steps, and all are asked the same held-out questions. How many tokens that is depends on who
answers, and how long: the table says it.

    .venv/bin/python -m recipes.nano.distill_controls recipes/nano/chain/distill_controls.toml --out runs/controls/ways

The recipe is one of `dsv4 distill`; `--set` changes a field as there. The student is its `init`; `held_out` says what
is asked. Each way has a run and a model of its own in `--out`, and controls.md gets the table. The same command goes on
where it was stopped. Raises ValueError for a folder with the figures of another comparison.
"""

import argparse
import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dsv4.api.tokenizer import load_tokenizer
from dsv4.checkpoint.names import FP32 as FP32_FILES
from dsv4.cli.flags import at_least
from dsv4.cli.folders import recipe_folder
from dsv4.cli.rollout_engine import rollout_engine
from dsv4.cli.rollout_start import Makers, Options, environments_of, prompt_source, run_recipe
from dsv4.cli.train_start import told_in_sentences
from dsv4.files import whole_folder, write_whole
from dsv4.model.device import choose_device
from dsv4.model.layers import FP32
from dsv4.posttraining.average import save_average
from dsv4.posttraining.base_model import BaseModel
from dsv4.posttraining.distill_recipe import DistillRecipe
from dsv4.posttraining.distill_run import DistillRun
from dsv4.training.logbook import read_log
from recipes.nano.grading.figures import percent, share

WAYS = {
    "reverse": "reverse KL over the vocabulary",
    "sampled": "sampled-token estimate",
    "top-k": "reverse KL over the likeliest ids",
    "forward": "forward KL over the vocabulary",
    "jsd": "Jensen-Shannon divergence",
    "sft": "mixed SFT on the teachers' answers",
}
AVERAGE = "average"
FIGURES, TABLE = "controls.json", "controls.md"
Row = dict[str, Any]


class Comparison:
    """A comparison at work in the folder `out`. tokens: that each way learns from, about; the number of steps follows
    from it and from the length of the student's answers before. ways: of WAYS, or AVERAGE. Raises ValueError for a
    recipe with which one of the ways cannot run."""

    def __init__(self, recipe: DistillRecipe, out: Path, tokens: int, ways: Sequence[str]) -> None:
        if not recipe.held_out.path:
            raise ValueError("held_out.path is missing: the ways are compared on held-out prompts")
        if recipe.held_out.samples > 1 or recipe.held_out.every:
            raise ValueError("held_out.samples must be 1 and held_out.every 0: each model is asked once, at its end")
        self.recipe, self.out, self.tokens, self.ways = recipe, out, tokens, tuple(ways)
        self._recipes = {
            way: replace(recipe, name=f"{recipe.name}-{way}", objective=replace(recipe.objective, kind=way))
            for way in ways
            if way != AVERAGE
        }
        self._about = json.loads(json.dumps({"recipe": recipe.to_dict(), "tokens": tokens}))
        self.rows: dict[str, Row] = {}
        if (file := out / FIGURES).exists():
            found = json.loads(file.read_text(encoding="utf-8"))
            if found["about"] != self._about:
                raise ValueError(f"{file} has the figures of another recipe or number of tokens: use another folder")
            self.rows = found["rows"]

    def run(self) -> str:
        """Everything that is missing; returns the table."""
        self.out.mkdir(parents=True, exist_ok=True)
        self._row("student", lambda: self._asked(Path(self.recipe.init)))
        if unasked := self.recipe.teachers.keys() - self.rows["student"]["domains"].keys():
            raise ValueError(f"held_out: there is no prompt of the domain {', '.join(sorted(unasked))}")
        for domain, teacher in self.recipe.teachers.items():
            self._row(f"teacher {domain}", lambda path=teacher.path, own=domain: self._asked(Path(path), own))
        for way in self.ways:
            self._row(way, lambda way=way: self._average() if way == AVERAGE else self._distilled(way))
        text = table(self.rows, list(self.recipe.teachers), self.ways)
        write_whole(self.out / TABLE, lambda file: file.write(text.encode()))
        return text

    def _row(self, name: str, make: Callable[[], Row]) -> None:
        if name in self.rows:
            return
        self.rows[name] = make()
        text = json.dumps({"about": self._about, "rows": self.rows}, indent=1) + "\n"
        write_whole(self.out / FIGURES, lambda file: file.write(text.encode()))

    @property
    def steps(self) -> int:
        """Of each way."""
        rollouts = self.recipe.rollouts
        return max(1, round(self.tokens / (self.rows["student"]["length"] * rollouts.prompts * rollouts.group)))

    def _distilled(self, way: str) -> Row:
        place, options = self.out / way, Options(live=-1, track=None, export="fp32", steps=None, threads=None)
        run_recipe(replace(self._recipes[way], steps=self.steps), place, options, DistillRun)
        *_, last = read_log(place / "log.jsonl")
        return {**self._asked(place), "tokens": last["tokens"], "kl": last.get("kl")}

    def _average(self) -> Row:
        place = self.out / AVERAGE
        with whole_folder(place) as folder:  # one that an interrupted run has left is made anew
            save_average(folder, [Path(path) for path in self.recipe.paths], FP32_FILES)
        return self._asked(place)

    def _asked(self, folder: Path, domain: str | None = None) -> Row:
        """What a model answers to the held-out prompts, of one domain or all: shares by domain, and the mean length."""
        recipe, base = self.recipe, BaseModel.open(folder)
        tokenizer = load_tokenizer(base.folder, base.config.vocab_size)
        if tokenizer is None:
            raise ValueError(f"{base.folder} has no tokenizer.json")
        source = prompt_source(recipe.held_out, tokenizer, recipe.seed, "held_out")
        prompts = [p for p in source.batch(0, recipe.held_out.prompts) if domain in (None, p.domain)]
        weights, sampling = base.trainable(FP32).state_dict(), recipe.rollouts
        sizes = {"context": sampling.context, "sequences": sampling.concurrent, "device": choose_device(recipe.device)}
        with rollout_engine(base.config, weights, "fp32", **sizes) as (engine, sink):
            makers = Makers(
                recipe, engine, environments_of(recipe, tokenizer, engine), tokenizer.eos_id, sink, self.out
            )
            groups = asyncio.run(makers.tried(prompts))
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        scores: dict[str, list[float]] = {}
        for rollout in rollouts:
            scores.setdefault(rollout.prompt.domain, []).append(rollout.reward or 0.0)
        return {
            "domains": {name: share(found) for name, found in sorted(scores.items())},
            "length": sum(rollout.length for rollout in rollouts) / max(1, len(rollouts)),
        }


def table(rows: dict[str, Row], domains: Sequence[str], ways: Sequence[str]) -> str:
    """In Markdown: student, ways, teachers; a column for each domain."""
    lines = [f"| right, % | {' | '.join(domains)} | tokens of answers |", "|---|" + "---:|" * (len(domains) + 1)]
    names = {"student": "student before", **{way: WAYS.get(way, "average of the teachers' weights") for way in ways}}
    for name, title in names.items():
        row = rows[name]
        found = [percent(row["domains"][domain]) for domain in domains]
        tokens = f"{row['tokens']:,}" if "tokens" in row else "-"
        lines.append(f"| {title} | {' | '.join(found)} | {tokens} |")
    teachers = [percent(rows[f"teacher {domain}"]["domains"][domain]) for domain in domains]
    lines.append(f"| the domain's teacher | {' | '.join(teachers)} | - |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=300_000, help="that each way learns from, about")
    parser.add_argument("--only", default=",".join([*WAYS, AVERAGE]), help="ways, with commas between them")
    parser.add_argument(
        "--set", action="append", default=[], help="change a field of the recipe; repeat it for several"
    )
    parser.add_argument("--threads", type=int)
    given = parser.parse_args(arguments)
    ways = [way for way in given.only.split(",") if way]
    if unknown := set(ways) - {*WAYS, AVERAGE}:
        parser.error(f"--only: no way {', '.join(sorted(unknown))}; there are {', '.join([*WAYS, AVERAGE])}")
    try:
        at_least(1, tokens=given.tokens, threads=given.threads)
        if given.threads is not None:
            torch.set_num_threads(given.threads)
        with told_in_sentences():
            recipe = DistillRecipe.from_file(given.recipe, given.set).at(recipe_folder)
            print(Comparison(recipe, given.out, given.tokens, ways).run())
    except ValueError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
