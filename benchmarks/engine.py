"""What batching, reuse and the disk are worth: ratios measured in one run, printed and kept as JSON lines.

    .venv/bin/python benchmarks/engine.py [FOLDER] [--json benchmarks/results.jsonl]

FOLDER: a checkpoint, default models/nano. Random tokens; nothing here is judged.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dsv4.api.loading import load
from dsv4.api.local_model import LocalModel
from dsv4.bench.model import streams_rate
from dsv4.bench.results import tell_row
from dsv4.bench.speed import random_prompt
from dsv4.cache.prefix import ReusePolicy, Windows
from dsv4.generation import SamplingParams
from dsv4.workload.timing import percentile

NANO = Path(__file__).resolve().parents[1] / "models" / "nano"


def prompt_of(model: LocalModel, length: int, seed: int) -> list[int]:
    return random_prompt(model.config.vocab_size, length, seed)


def opened(folder: Path, context: int, mode: str = "fp32", **options: object) -> LocalModel:
    model = load(folder, mode, context_length=context, **{"draft": "none"} | options)  # type: ignore[arg-type]
    model.engine.ends = frozenset()
    list(model.engine.generate(prompt_of(model, 16, 0), SamplingParams(max_tokens=2, temperature=0)))
    return model


def first_token(model: LocalModel, prompt: list[int]) -> float:
    """Seconds to the first token; the request is then cancelled."""
    start = time.perf_counter()
    stream = model.engine.generate(prompt, SamplingParams(max_tokens=2, temperature=0))
    next(stream)
    seconds = time.perf_counter() - start
    stream.close()  # type: ignore[attr-defined]
    return seconds


def concurrency(folder: Path) -> dict[str, float]:
    model = opened(folder, 1024, sequences=8, reuse=ReusePolicy(snapshots=0))
    return {f"streams_{n}": streams_rate(model, n, 256) for n in (1, 2, 4, 8)}


def speculation(folder: Path) -> dict[str, float]:
    result = {}
    for on in (False, True):
        model = opened(folder, 1024, sequences=1, draft="head" if on else "none", reuse=ReusePolicy(snapshots=0))
        result[f"speculate_{on}".lower()] = streams_rate(model, 1, 256, tokens=256)
        if on and model.engine.counts.drafted:
            result["accepted"] = model.engine.counts.accepted / model.engine.counts.drafted
    return result


def steps(folder: Path) -> dict[str, float]:
    """One stream with the fused native step and op by op, in turns; the best of three each."""
    rates = {"fused": 0.0, "op_by_op": 0.0}
    for _ in range(3):
        for name in rates:
            model = opened(folder, 2048, sequences=1, fused=name == "fused", reuse=ReusePolicy(snapshots=0))
            rates[name] = max(rates[name], streams_rate(model, 1, 512, tokens=256))
    return rates


def cached_prefix(folder: Path, length: int, windows: Windows) -> dict[str, float]:
    """Time to first token of a prompt, then of one that continues it."""
    model = opened(folder, length + 64, sequences=1, reuse=ReusePolicy(windows, 4096, 40 if windows != "full" else 300))
    prompt = prompt_of(model, length, 7)
    cold = first_token(model, prompt)
    warm = first_token(model, [*prompt, *prompt_of(model, 32, 8)])
    return {f"cold_{windows}": cold, f"warm_{windows}": warm, f"ratio_{windows}": cold / warm}


def restored(folder: Path, length: int) -> dict[str, float]:
    """Time to first token by computing, then in a new engine from disk."""
    with tempfile.TemporaryDirectory() as place:
        model = opened(folder, length + 64, sequences=1, prefix_folder=Path(place))
        prompt = prompt_of(model, length, 9)
        cold = first_token(model, prompt)
        model.engine.close()
        again = opened(folder, length + 64, sequences=1, prefix_folder=Path(place))
        warm = first_token(again, [*prompt, 70, 71])
        reused = again.engine.cache.prefixes.counts.hit_tokens
        again.engine.close()
    return {"prefill": cold, "restore": warm, "restored_tokens": reused, "ratio": cold / warm}


def beside_prompt(folder: Path, mode: str, length: int, slowdown: float | None, seconds: float) -> dict[str, float]:
    """Eight streams: milliseconds between two of their tokens, alone and while a prompt of `length` is computed, for
    `seconds` at most; and the rate of the prompt."""
    model = opened(folder, length + 64, mode, sequences=9, slowdown=slowdown, reuse=ReusePolicy(snapshots=0))
    engine, decoding = model.engine, SamplingParams(max_tokens=length, temperature=0)
    streams = [engine.submit(prompt_of(model, 256, seed), decoding) for seed in range(8)]
    while not all(request.decodes for request in streams):
        engine.step()
    alone = [timed(engine.step) for _ in range(200)]
    prompt = engine.submit(prompt_of(model, length, 9), SamplingParams(max_tokens=1, temperature=0))
    beside: list[float] = []
    while prompt.generated == 0 and sum(beside) < seconds:
        beside.append(timed(engine.step))
    done = prompt.prompt_length if prompt.generated else prompt.cached
    name = "unlimited" if slowdown is None else f"slowdown_{slowdown:g}"
    told = {"alone_p50": milliseconds(alone, 50), "alone_p99": milliseconds(alone, 99)}
    told |= {"beside_p50": milliseconds(beside, 50), "beside_p99": milliseconds(beside, 99)}
    told |= {"prompt_tokens": done, "prompt_rate": done / sum(beside), "steps": len(beside)}
    return {f"{name}_{key}": value for key, value in told.items()}


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def milliseconds(seconds: Sequence[float], percent: float) -> float:
    return 1e3 * percentile(sorted(seconds), percent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=NANO)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--prefix", type=int, default=32768, help="tokens of the kept prefix in memory")
    parser.add_argument("--only", metavar="NAME", help="one of the comparisons, as their rows are called")
    parser.add_argument("--restore", type=int, default=102400, help="tokens of the prefix on disk")
    parser.add_argument("--mode", default="fp32", help="of `beside prompt`")
    parser.add_argument("--prompt", type=int, default=32768, help="tokens of the prompt beside decoding streams")
    parser.add_argument("--seconds", type=float, default=60.0, help="at most, for `beside prompt`")
    args = parser.parse_args()
    jobs = {
        "concurrency": lambda: concurrency(args.folder),
        "steps": lambda: steps(args.folder),
        "speculation": lambda: speculation(args.folder),
        "cached periodic": lambda: cached_prefix(args.folder, args.prefix, "periodic"),
        "cached full": lambda: cached_prefix(args.folder, args.prefix, "full"),
        "cached none": lambda: cached_prefix(args.folder, args.prefix, "none"),
        "beside prompt": lambda: {
            name: value
            for slowdown in (None, 2.0)
            for name, value in beside_prompt(args.folder, args.mode, args.prompt, slowdown, args.seconds).items()
        },
        "restored": lambda: restored(args.folder, args.restore),
    }
    if args.only is not None and args.only not in jobs:
        parser.error(f"--only must be one of {', '.join(jobs)}, got {args.only!r}")
    for name, job in jobs.items():
        if args.only not in (None, name):
            continue
        row = {"bench": name, "model": args.folder.resolve().name, **job()}
        tell_row(row, args.json)


if __name__ == "__main__":
    main()
