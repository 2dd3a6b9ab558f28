"""What looked-up drafts are worth where an agent writes a file again with small changes, and what they cost where
hardly any text repeats.

    .venv/bin/python benchmarks/file_edits.py models/nano --mode release [--json benchmarks/results.jsonl]
    .venv/bin/python benchmarks/file_edits.py FOLDER --mode release --tokens 150 --rounds 1

A trace is made of a source file of this repository: the prompt shows it, and the answer is the file with some lines
changed, added and left out (--share of its lines, seeded). `prose` is a page of docs/ that is continued, `random` are
random tokens, a text without repetition. Tokens are those of models/nano.

The models here do not copy a file faithfully, so the answer is forced: every step computes what it always computes and
samples from its own logits, and then the trace's token takes the place of the sampled one. Drafts are accepted as by a
model that writes exactly this answer; all the work and its time are those of the model that runs.

Each answer is given without and with look-up in turns; the best of --rounds counts, in seconds of the processor, after
the prompt. One thread.
"""

import argparse
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsv4.api.loading import load
from dsv4.api.local_model import LocalModel
from dsv4.api.tokenizer import load_tokenizer
from dsv4.bench.results import tell_row
from dsv4.cache.prefix import ReusePolicy
from dsv4.config import DraftChoice, ModelConfig
from dsv4.generation import SamplingParams

ROOT = Path(__file__).parents[1]
NANO = ROOT / "models" / "nano"
CONTEXT = 8192
ADDED = ("    check(value)", "    count += 1", "    # the order of rows matters here", "    log('step', number=number)")


@dataclass(frozen=True, slots=True)
class Trace:
    """An answer that is forced. prompt, answer: token ids."""

    name: str
    prompt: list[int]
    answer: list[int]


def edited(lines: list[str], own: random.Random, share: float) -> list[str]:
    """The lines of a file after edits at `share` of them: a word is changed, a line is added, or one is left out."""
    out = []
    for line in lines:
        kind = own.random() / share
        words = line.split(" ")
        named = [i for i, word in enumerate(words) if word.isidentifier()]
        if kind < 0.4 and named:
            words[own.choice(named)] = own.choice(("rows", "total", "new_name", "left"))
            out.append(" ".join(words))
        elif kind < 0.7:
            out += [line, own.choice(ADDED)]
        elif kind >= 1:
            out.append(line)
    return out


def traces(count: int, tokens: int, share: float, most_lines: int) -> list[Trace]:
    """`count` edits of files, of their first lines only, as many pages of prose, and a random text; answers have at
    most `tokens` tokens."""
    tokenizer = load_tokenizer(NANO, ModelConfig.from_file(NANO).vocab_size, None)
    own = random.Random(0)
    files = [file for file in sorted((ROOT / "dsv4").rglob("*.py")) if 1500 < file.stat().st_size < 9000]
    found = []
    for file in own.sample(files, count):
        lines = file.read_text(encoding="utf-8").splitlines()[:most_lines]
        before, after = "\n".join(lines), "\n".join(edited(lines, own, share))
        prompt = tokenizer.encode_text(f"Change this file.\n```python\n{before}\n```\n")
        found.append(Trace("edit", prompt, tokenizer.encode_text(f"```python\n{after}\n```\n")[:tokens]))
    pages = [page for page in sorted((ROOT / "docs").glob("*.md")) if page.stat().st_size > 8000]
    for page in own.sample(pages, count):
        ids = tokenizer.encode_text(page.read_text(encoding="utf-8"))
        found.append(Trace("prose", ids[:400], ids[400 : 400 + tokens]))
    ids = [own.randrange(tokenizer.vocab_size) for _ in range(400 + tokens)]
    return [*found, Trace("random", ids[:400], ids[400:])]


def opened(folder: Path, mode: Any, draft: DraftChoice) -> LocalModel:
    model = load(folder, mode, context_length=CONTEXT, sequences=1, reuse=ReusePolicy(snapshots=0), draft=draft)
    model.engine.ends = frozenset()
    model.engine.runner.clock = time.process_time  # as for the result: turns of other programs are no cost of a row
    return model


def forced(model: LocalModel, trace: Trace) -> tuple[float, int]:
    """Seconds of the processor and steps of an answer behind its first token."""
    engine = model.engine
    request = engine.submit(trace.prompt, SamplingParams(max_tokens=len(trace.answer), temperature=0))
    real, tokens = request.sampler.choose, iter(trace.answer)

    def choose(logits_V: Tensor) -> int:
        real(logits_V)
        return next(tokens)

    request.sampler.choose = choose  # type: ignore[method-assign]
    while not request.generated:
        engine.step()
    began, steps = time.process_time(), engine.counts.steps
    while engine.busy:
        engine.step()
    assert request.tokens[request.prompt_length :] == trace.answer
    return time.process_time() - began, engine.counts.steps - steps


def measured(folder: Path, mode: Any, work: list[Trace], rounds: int, draft: DraftChoice) -> list[dict[str, Any]]:
    models = {"none": opened(folder, mode, "none"), draft: opened(folder, mode, draft)}
    rows = []
    for kind in dict.fromkeys(trace.name for trace in work):
        seconds, steps, tokens = dict.fromkeys(models, 0.0), dict.fromkeys(models, 0), 0
        counts = models[draft].engine.counts
        before = counts.drafted, counts.accepted
        for trace in (trace for trace in work if trace.name == kind):
            tokens += len(trace.answer) - 1
            best: dict[str, float] = {}
            for _ in range(rounds):
                for name, model in models.items():
                    taken, steps_taken = forced(model, trace)
                    best[name] = min(taken, best.get(name, taken))
                    steps[name] += steps_taken
            for name, taken in best.items():
                seconds[name] += taken
        drafted, accepted = counts.drafted - before[0], counts.accepted - before[1]
        rows.append(
            {
                "text": kind,
                "tokens": tokens,
                "none": tokens / seconds["none"],
                draft: tokens / seconds[draft],
                "tokens_a_step": tokens * rounds / steps[draft],
                "accepted": accepted / drafted if drafted else None,
                "ratio": seconds["none"] / seconds[draft],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mode", default="fp32")
    parser.add_argument("--draft", default="ngram", choices=["ngram", "head", "both"])
    parser.add_argument("--traces", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=600)
    parser.add_argument("--lines", type=int, default=120)
    parser.add_argument("--share", type=float, default=0.08)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    work = traces(args.traces, args.tokens, args.share, args.lines)
    for row in measured(args.folder, args.mode, work, args.rounds, args.draft):
        row = {"bench": "file_edits", "model": args.folder.resolve().name, "mode": args.mode, **row}
        tell_row(row, args.json)


if __name__ == "__main__":
    main()
