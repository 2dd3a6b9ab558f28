"""Training speed and memory beside transformers: whole steps, alternating between processes that do nothing else.

    .venv/bin/python benchmarks/training.py [--models nano b120m] [--lengths 1024] [--json benchmarks/results.jsonl]

ours: forward, backward, clipping, Muon + AdamW; with the prediction block (where the shape has one) and the indexers'
loss ("full"), or without both ("plain": every compressed entry is read). peer: DeepseekV4ForCausalLM of transformers,
eager, fp32, labels' loss, clipping, torch.optim.AdamW; it trains neither indexer nor prediction block. One sequence
a step, random tokens. The smallest time of each part counts, by the clock and, for a machine that others use too, of
the processor (cpu_). A peer that needs more than --step-seconds or --memory is ended and the reason kept. Nothing here
is judged.
"""

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

MODELS = ("nano", "b120m")


class Watch:
    """Seconds of a step's parts and of all together, by the clock and (cpu_) of the processor."""

    def __init__(self) -> None:
        self._last = time.perf_counter(), time.process_time()
        self.parts = {"seconds": 0.0, "cpu_seconds": 0.0}

    def note(self, part: str) -> None:
        now = time.perf_counter(), time.process_time()
        for prefix, then, this in zip(("", "cpu_"), self._last, now, strict=True):
            self.parts[prefix + part] = this - then
            self.parts[prefix + "seconds"] += this - then
        self._last = now


def shape(name: str, ahead: bool) -> Any:
    """The model's configuration, with or without its prediction block; float weights."""
    from benchmarks.random_model import SHAPES
    from dsv4.training.recipe import Recipe

    config = Recipe.from_file("recipes/nano/base.toml").config(3072) if name == "nano" else SHAPES[name]
    if ahead:
        return config
    ratios = config.compress_ratios[: config.num_hidden_layers]
    return replace(config, num_nextn_predict_layers=0, compress_ratios=ratios)


def our_step(name: str, length: int, full: bool, products: str) -> tuple[Callable[[], dict[str, float]], float]:
    """One step with the seconds of its parts, and the operations a token needs."""
    import torch

    from dsv4.model.init import init_weights
    from dsv4.model.transformer import Transformer
    from dsv4.training.batch import Batch
    from dsv4.training.clipping import clip_gradients
    from dsv4.training.loss import compute_loss
    from dsv4.training.muon import PRODUCTS
    from dsv4.training.param_groups import make_optimizers
    from dsv4.training.schedule import Phase
    from dsv4.training.throughput import training_flops

    config = shape(name, full)
    model = init_weights(Transformer(config), 0)
    optimizers = make_optimizers(config, model.named_parameters(), 1e-4, dtype=PRODUCTS[products])
    batch = Batch(torch.randint(config.vocab_size, (length,)), (length,), torch.ones(length))
    phase = Phase.SPARSE if full else Phase.DENSE

    def step() -> dict[str, float]:
        watch = Watch()
        losses = compute_loss(model, batch, phase=phase)
        watch.note("forward")
        losses.total.backward()
        watch.note("backward")
        clip_gradients(model.parameters(), 1.0)
        optimizers.step()
        optimizers.zero_grad()
        watch.note("rest")
        return watch.parts

    return step, training_flops(config, [length], dense=not full)


def peer_step(name: str, length: int) -> tuple[Callable[[], dict[str, float]], float]:
    import torch
    import transformers

    from dsv4.checkpoint import BF16, save_checkpoint
    from dsv4.model.init import init_weights
    from dsv4.model.transformer import Transformer
    from dsv4.training.throughput import training_flops

    config = shape(name, False)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(folder, config, init_weights(Transformer(config), 0).state_dict(), BF16)
        model = transformers.DeepseekV4ForCausalLM.from_pretrained(folder, attn_implementation="eager").float().train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95))
    ids = torch.randint(config.vocab_size, (1, length))

    def step() -> dict[str, float]:
        watch = Watch()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        watch.note("forward")
        loss.backward()
        watch.note("backward")
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        watch.note("rest")
        return watch.parts

    return step, training_flops(config, [length])


def worker(side: str, name: str, length: int, threads: int, products: str) -> None:
    """A line with the result for each line that comes in; the first tells what is known before any step."""
    import torch

    from dsv4.bench.memory import peak_bytes
    from dsv4.training.throughput import matmul_rate

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    step, flops = peer_step(name, length) if side == "peer" else our_step(name, length, side == "full", products)
    print(json.dumps({"flops": flops}), flush=True)
    for _ in sys.stdin:
        found = step()
        print(json.dumps({**found, "peak_bytes": peak_bytes(), "matmul_rate": matmul_rate()}), flush=True)


class Side:
    """One process that takes steps when asked. After `failed` is set it is gone."""

    def __init__(self, side: str, name: str, length: int, args: argparse.Namespace) -> None:
        self.name, self.failed, self.steps = side, "", list[dict[str, float]]()
        self._seconds, self._memory, self.peak = args.step_seconds, args.memory * 2**30, 0
        command = [sys.executable, __file__, "--worker", side, name, str(length), "--threads", str(args.threads)]
        command += ["--products", args.products]
        root = str(Path(__file__).resolve().parents[1])
        environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "PYTHONPATH": root}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        first = self._read()
        self.flops = first["flops"] if first else 0.0

    def step(self, counts: bool) -> None:
        """One more step; `counts`: it is no warm-up."""
        if self.failed:
            return
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        found = self._read()
        if found:
            self.peak = int(found["peak_bytes"])
            if counts:
                self.steps.append(found)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> dict[str, float] | None:
        """The next line; None, and the reason in `failed`, when there is none in time or memory runs out."""
        assert self._process.stdout is not None
        start = time.monotonic()
        while not select.select([self._process.stdout], [], [], 0.2)[0]:
            self.peak = max(self.peak, self._resident())
            if time.monotonic() - start > self._seconds:
                self.failed = f"no step within {self._seconds:g} s"
            elif self.peak > self._memory:
                self.failed = f"more than {self._memory / 2**30:g} GiB"
            if self.failed:
                self.close()
                return None
        line = self._process.stdout.readline()
        if not line:
            self.failed = f"ended with {self._process.wait()}"
            return None
        return json.loads(line)

    def _resident(self) -> int:
        try:
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def row(self, length: int) -> dict[str, Any]:
        """What was measured: the fastest step."""
        row: dict[str, Any] = {"side": self.name, "peak_bytes": self.peak}
        if self.failed:
            row["failed"] = self.failed
        if self.steps:
            best = {key: min(step[key] for step in self.steps) for key in self.steps[0]}
            rate, fastest = length / best["seconds"], max(step["matmul_rate"] for step in self.steps)
            row |= {key: value for key, value in best.items() if key not in ("peak_bytes", "matmul_rate")}
            row |= {"tokens_per_second": rate, "mfu": rate * self.flops / fastest, "steps": len(self.steps)}
        return row


def measure(name: str, length: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    sides = [Side(side, name, length, args) for side in args.sides if side != "peer" or length <= args.peer_up_to]
    try:
        for step in range(args.steps + 1):
            for side in sides:
                side.step(step > 0)
    finally:
        for side in sides:
            side.close()
    rows = [{"bench": "training", "model": name, "length": length, **side.row(length)} for side in sides]
    peer = next((row for row in rows if row["side"] == "peer"), None)
    for row in rows:
        if peer and row is not peer:
            if "seconds" in row and "seconds" in peer:
                row["times_peer"] = peer["seconds"] / row["seconds"]
                row["cpu_times_peer"] = peer["cpu_seconds"] / row["cpu_seconds"]
            row["peak_of_peer"] = row["peak_bytes"] / max(1, peer["peak_bytes"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 2048, 4096, 8192])
    parser.add_argument("--sides", nargs="+", choices=("full", "plain", "peer"), default=("full", "plain", "peer"))
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each side, after one to warm up")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--products", choices=("fp32", "int16", "bf16"), default="int16", help="of Newton-Schulz, ours")
    parser.add_argument("--peer-up-to", type=int, default=4096, help="longest sequence the peer is asked for")
    parser.add_argument("--step-seconds", type=float, default=120)
    parser.add_argument("--memory", type=float, default=20, help="GiB that a process may take")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=3, metavar=("SIDE", "MODEL", "LENGTH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        side, name, length = args.worker
        return worker(side, name, int(length), args.threads, args.products)
    from dsv4.bench.results import append_lines, row_text

    for name in args.models:
        for length in args.lengths:
            for row in measure(name, length, args):
                print(row_text(row), flush=True)
                if args.json:
                    append_lines(args.json, [{"threads": args.threads, "products": args.products, **row}])


if __name__ == "__main__":
    main()
