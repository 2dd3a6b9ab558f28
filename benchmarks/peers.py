"""Prefill and decode of one checkpoint beside other engines, in turns: each keeps its own process, which waits while
another measures.

    .venv/bin/python benchmarks/peers.py FOLDER --gguf FILE --llama PYTHON --flyweight PYTHON
        [--transformers fp32 bf16] [--prompt 512] [--decode 64] [--rounds 3] [--json benchmarks/results.jsonl]

FOLDER is a checkpoint in the released layout, FILE the same by `dsv4 convert FOLDER FILE.gguf`. PYTHON is an
interpreter that has xllamacpp, or flyweight-llm with jinja2. Ours runs in release numerics; transformers with weights
dequantised to fp32 or bf16, because its FP8 needs a GPU; bf16 products are slow on CPUs without AVX512_BF16. Random
prompts, a new one every round; flyweight takes text only and gets random words, counted as it counts them. One whole
round warms each engine up, and the order turns by one every round. Medians count; nothing is judged. A rate that the
measured times cannot give (more tokens took no longer) is none, shown as -, and counts for nothing.
"""

import argparse
import atexit
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

Rates = tuple[float | None, float | None]  # prefill and decode tokens/s; None where the times cannot tell
Measure = Callable[[int], Rates]  # of a round
VOCABULARY = 16384  # of the shared random checkpoints; prompts avoid the 64 lowest ids


def prompt(length: int, turn: int) -> list[int]:
    rng = random.Random(f"{length}/{turn}")
    return [rng.randrange(64, VOCABULARY) for _ in range(length)]


def ours(args: argparse.Namespace) -> Measure:
    from dsv4.bench.speed import Ours

    return timed(Ours(Path(args.folder), args.prompt + args.decode + 64, mode="release"), args)


def timed(engine: Any, args: argparse.Namespace) -> Measure:
    """An engine of dsv4.bench.speed."""

    def measure(turn: int) -> Rates:
        speed = engine.run(args.prompt, args.decode, seed=turn + 2)
        return speed.prefill_rate, speed.decode_rate

    measure(-1)
    return measure


def llama(args: argparse.Namespace) -> Measure:
    import xllamacpp  # pyrefly: ignore

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = args.gguf, args.prompt + args.decode + 64, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
    server = xllamacpp.Server(params)

    def measure(turn: int) -> Rates:
        asked = {"prompt": prompt(args.prompt, turn), "n_predict": args.decode, "temperature": 0, "ignore_eos": True}
        told = server.handle_completions({**asked, "cache_prompt": False})
        told = json.loads(told) if isinstance(told, bytes | str) else told
        timings = (told[0] if isinstance(told, list) else told)["timings"]
        return timings["prompt_per_second"], timings["predicted_per_second"]

    measure(-1)
    return measure


def flyweight(args: argparse.Namespace) -> Measure:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "flyweight", "serve", args.gguf, "--backend", "cpu", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    atexit.register(end, process)
    url = f"http://127.0.0.1:{port}/v1"
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{url}/models", timeout=2).close()
            break
        except OSError:
            if process.poll() is not None:
                raise RuntimeError(f"flyweight ended with {process.returncode}") from None
            time.sleep(1)

    def ask(words: list[str], tokens: int) -> Answer:
        body = {"model": "m", "prompt": " ".join(words), "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/completions", json.dumps(body).encode(), headers)
        start = time.perf_counter()
        with urllib.request.urlopen(request, timeout=600) as answer:
            usage = json.load(answer)["usage"]
        seconds = time.perf_counter() - start
        computed = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
        return Answer(seconds, computed, usage["completion_tokens"])

    def measure(turn: int) -> Rates:
        words = random.Random(turn).choices(sorted(sys.stdlib_module_names), k=args.prompt // 3)
        # the second and the third find the same part of their prompt computed, so that they differ in tokens alone
        return rates_of(*(ask(words, tokens) for tokens in (1, 1, args.decode)))

    measure(-1)
    return measure


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request took: seconds, prompt tokens computed for it, tokens it brought."""

    seconds: float
    computed: int
    tokens: int


def rates_of(fresh: Answer, short: Answer, long: Answer) -> Rates:
    """From a new prompt answered by one token, and the same prompt again answered by one token and by many."""
    more, longer = long.tokens - short.tokens, long.seconds - short.seconds
    prefill = fresh.computed / fresh.seconds if fresh.computed > 0 else None
    return prefill, more / longer if more > 0 and longer > 0 else None


def transformers(args: argparse.Namespace) -> Measure:
    from dsv4.bench.speed import Transformers

    return timed(Transformers(Path(args.folder), args.worker.removeprefix("transformers-")), args)


TRANSFORMERS = ("transformers-fp32", "transformers-bf16")
ENGINES = {"dsv4": ours, "llama.cpp": llama, "flyweight": flyweight, **dict.fromkeys(TRANSFORMERS, transformers)}


def worker(args: argparse.Namespace) -> None:
    """A JSON line for each line that comes in; ends with its input, and what it started with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that atexit runs
    measure = ENGINES[args.worker](args)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(int(line))), flush=True)


def lines_of(process: subprocess.Popen[str], name: str) -> Iterator[str]:
    """What a worker says, without what its libraries print. Raises RuntimeError when it ends."""
    for line in process.stdout or ():
        if line.startswith(("ready", "[")) and line.strip()[-1] in "]y":
            yield line
    raise RuntimeError(f"{name} ended with {process.wait()}")


def end(process: subprocess.Popen[Any], patience: float = 10) -> None:
    """End a process and all that it started, in whatever session: politely, then not."""
    family = [process.pid, *descendants(process.pid)]
    for kind in (signal.SIGTERM, signal.SIGKILL):
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, kind)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and theirs; none where /proc does not tell."""
    parents: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # the second field is a name in parentheses that may hold anything
            parents.setdefault(int(file.read_text().rpartition(")")[2].split()[1]), []).append(int(file.parent.name))
    found, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


def shown(rate: float | None, form: str) -> str:
    return format("-", f">{form.partition('.')[0]}") if rate is None else format(rate, form)


def middle(rates: Sequence[float | None]) -> float | None:
    """The median of those there are."""
    there = [rate for rate in rates if rate is not None]
    return median(there) if there else None


def main(args: argparse.Namespace) -> list[dict[str, Any]]:
    pythons = {"dsv4": sys.executable, "llama.cpp": args.llama, "flyweight": args.flyweight}
    pythons |= {f"transformers-{dtype}": sys.executable for dtype in args.transformers}
    given = [f"--{key}={getattr(args, key)}" for key in ("gguf", "prompt", "decode", "threads")]
    workers: dict[str, tuple[subprocess.Popen[str], Iterator[str]]] = {}
    root = Path(__file__).resolve().parents[1]
    found: dict[str, list[Rates]] = {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended
    try:
        for name, python in pythons.items():
            if python is None:
                continue
            command = [python, str(Path(__file__).resolve()), args.folder, *given, f"--worker={name}"]
            environment = {"OMP_NUM_THREADS": str(args.threads), "FLYWEIGHT_CPU_THREADS": str(args.threads)}
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=root,
                stderr=subprocess.DEVNULL,
                env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root), **environment},
                start_new_session=True,
            )
            workers[name] = process, lines_of(process, name)
            next(workers[name][1])
        for turn in range(args.rounds):
            names = list(workers)
            for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
                process, said = workers[name]
                print(turn, file=process.stdin, flush=True)
                found.setdefault(name, []).append(tuple(json.loads(next(said))))
                prefill, decode = found[name][-1]
                print(f"round {turn + 1} {name:17} prefill {shown(prefill, '8.1f')}   decode {shown(decode, '7.2f')}")
    finally:
        for process, _ in workers.values():
            end(process)
    rows = []
    for name, rates in found.items():
        prefills, decodes = zip(*rates, strict=True)
        about = {"bench": "peers", "model": Path(args.folder).name, "prompt": args.prompt, "decoded": args.decode}
        about |= {"engine": name, "threads": args.threads, "prefills": prefills, "decodes": decodes}
        rows.append({**about, "prefill": middle(prefills), "decode": middle(decodes)})
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--gguf")
    parser.add_argument("--llama", metavar="PYTHON")
    parser.add_argument("--flyweight", metavar="PYTHON")
    parser.add_argument("--transformers", nargs="+", choices=("fp32", "bf16"), default=(), metavar="DTYPE")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options)
    else:
        results = main(options)
        first = results[0]
        print(f"{'median':20} prefill tok/s        decode tok/s")
        for row in results:
            against = [
                f"({first[key] / row[key]:.2f}x)" if row is not first and first[key] and row[key] else ""
                for key in ("prefill", "decode")
            ]
            prefill, decode = shown(row["prefill"], "10.1f"), shown(row["decode"], "10.2f")
            print(f"{row['engine']:20} {prefill} {against[0]:9} {decode} {against[1]}")
        if options.json:
            from dsv4.bench.results import append_lines

            append_lines(options.json, results)
