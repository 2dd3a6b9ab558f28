"""What drafting is worth: tokens per second with none, as the folder drafts, and by how many drafts are right.

    .venv/bin/python benchmarks/speculation.py runs/nano/draft/model --own-text runs/nano/own_text.jsonl
    .venv/bin/python benchmarks/speculation.py FOLDER --mode release --forced [--json benchmarks/results.jsonl]

With --own-text: the prompts of a file of recipes/nano/own_text.py, answered to their end greedily and at temperature 1:
without drafts, with as many drafts as the engine chooses, and with all of them (the accepted length is that of the
last; what a model says behind the end of an answer is not its text).
With --forced: the head runs as always, but its drafts are replaced by the text that a run without drafts has said,
right up to each length in turn, and all are checked.
Modes alternate and the best of --rounds counts. One thread; seconds are of the processor, so that other programs on
the machine matter little.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dsv4.api.loading import load
from dsv4.api.local_model import LocalModel
from dsv4.bench.results import tell_row
from dsv4.bench.speed import random_prompt
from dsv4.cache.prefix import ReusePolicy
from dsv4.config import DraftChoice
from dsv4.engine.request import Request
from dsv4.generation import SamplingParams


class AllDrafts:
    """Checks every draft."""

    def wanted(self) -> bool:
        return True

    def lengths(self, survivals: Sequence[Sequence[float]]) -> list[int]:
        return [len(request) for request in survivals]

    def stepped(self, rows: int, seconds: float) -> None: ...

    def drafted(self, seconds: float) -> None: ...


def opened(folder: Path, mode: Any, speculate: bool) -> LocalModel:
    draft: DraftChoice = "head" if speculate else "none"
    return load(folder, mode, context_length=2048, sequences=1, reuse=ReusePolicy(snapshots=0), draft=draft)


def answer(model: LocalModel, prompt: list[int], params: SamplingParams) -> tuple[list[int], float, int]:
    """The tokens after the first one, the seconds of these, and the steps that they took."""
    request, engine = model.engine.submit(prompt, params), model.engine
    while not request.generated:
        engine.step()
    began, steps, first = time.process_time(), engine.counts.steps, request.generated
    while engine.busy:
        engine.step()
    said = request.tokens[request.prompt_length :]
    return said, (time.process_time() - began) / max(1, len(said) - first), engine.counts.steps - steps


def force(model: LocalModel, said: list[int], right: int) -> None:
    """Drafts that are right up to the place `right`, made after the head has run."""
    runner = model.engine.runner
    blocks = runner._blocks
    if blocks is None or model.config.dspark is None:
        raise ValueError("--forced needs a folder with a draft head")
    runner.pace, real, vocabulary = AllDrafts(), type(blocks).propose, model.config.vocab_size

    def propose(requests: list[Request], *others: Any) -> None:
        real(blocks, requests, *others)
        for request in requests:
            true = said[request.generated :][: len(request.drafts)]
            request.drafts = [t if i < right else (t + 1) % vocabulary for i, t in enumerate(true)]

    blocks.propose = propose  # type: ignore[method-assign,assignment]


def forced(folder: Path, mode: Any, tokens: int, rounds: int) -> list[dict[str, Any]]:
    plain, drafting = opened(folder, mode, False), opened(folder, mode, True)
    assert drafting.config.dspark is not None
    plain.engine.ends = drafting.engine.ends = frozenset()
    prompt = random_prompt(plain.config.vocab_size, 64, 0)
    params = SamplingParams(max_tokens=tokens, temperature=0)
    said, _, _ = answer(plain, prompt, params)
    best: dict[str, float] = {}
    for _ in range(rounds):
        _, seconds, _ = answer(plain, prompt, params)
        best["none"] = min(seconds, best.get("none", seconds))
        for right in range(drafting.config.dspark.block_size + 1):
            force(drafting, said, right)
            again, seconds, _ = answer(drafting, prompt, params)
            assert again == said
            best[f"{right + 1}"] = min(seconds, best.get(f"{right + 1}", seconds))
    return [
        {"tokens_a_round": name, "tokens_per_second": 1 / seconds, "ratio": best["none"] / seconds}
        for name, seconds in best.items()
    ]


def measured(folder: Path, mode: Any, file: Path, answers: int, tokens: int, rounds: int) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:answers]]
    models = {"none": opened(folder, mode, False), "drafts": opened(folder, mode, True)}
    if models["drafts"].config.dspark is not None:
        models["all"] = opened(folder, mode, True)
        models["all"].engine.runner.pace = AllDrafts()
    found = []
    for temperature in (0.0, 1.0):
        row: dict[str, Any] = {"temperature": temperature}
        for _ in range(rounds):
            texts = []
            for name, model in models.items():
                seconds, count, steps = 0.0, 0, 0
                for seed, line in enumerate(lines):
                    params = SamplingParams(max_tokens=tokens, temperature=temperature, seed=seed)
                    text, each, taken = answer(model, line["prompt"], params)
                    texts.append((name, text))
                    seconds, count, steps = seconds + each * (len(text) - 1), count + len(text) - 1, steps + taken
                row[name] = max(count / seconds, row.get(name, 0.0))
                row[f"{name}_tokens_a_step"] = count / steps
            said = [[text for name, text in texts if name == other] for other in models]
            assert all(other == said[0] for other in said)
        found.append(row | {"ratio": row["drafts"] / row["none"]})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mode", default="fp32")
    parser.add_argument("--own-text", type=Path)
    parser.add_argument("--forced", action="store_true")
    parser.add_argument("--answers", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.forced == (args.own_text is not None):
        parser.error("one of --own-text and --forced is needed")
    if args.forced:
        rows = forced(args.folder, args.mode, args.tokens, args.rounds)
    else:
        rows = measured(args.folder, args.mode, args.own_text, args.answers, args.tokens, args.rounds)
    for row in rows:
        row = {"bench": "speculation", "model": args.folder.resolve().name, "mode": args.mode, **row}
        tell_row(row, args.json)


if __name__ == "__main__":
    main()
