"""A server for the pages of engine, usage, training and model, with figures that look like those of a real one.

PYTHONPATH=. .venv/bin/python -m tests.web.operator_demo    serves it until Ctrl-C
"""

import json
import math
import random
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from dsv4.cli.architecture import architecture
from dsv4.cli.inspect import find_config
from dsv4.encoding import Tokenizer
from dsv4.generation import EngineReport, PoolReport, PrefixReport, StreamingReport
from dsv4.server import Settings, create_app
from dsv4.server.accounts.ledger import Ledger, Usage
from dsv4.testing.stub import StubGenerator
from tests.server.conftest import Server, listening

PREFIXES = ((820, None), (1420, 0), (3900, 1), (2100, 1), (256, None), (512, 4), (1800, 5), (2304, 5), (600, None))


class Busy(StubGenerator):
    """A stub whose report and drafts are those of a busy engine."""

    async def report(self) -> EngineReport:
        plain = await super().report()
        own = random.Random(3)
        experts = {layer: [int(900 * own.lognormvariate(0, 0.45)) for _ in range(64)] for layer in range(12)}
        return replace(
            plain,
            pages=PoolReport(512, 302, 96 + len(plain.requests), 114 - len(plain.requests), 1_310_720),
            slots=PoolReport(40, 40 - 9 - len(plain.requests), len(plain.requests), 9, 4_325_376),
            prefixes=tuple(PrefixReport("a", size, -(-size // 256), True, above) for size, above in PREFIXES),
            cache_bytes={
                "csa_entries": 412 << 20,
                "window": 96 << 20,
                "indexer_keys": 68 << 20,
                "hca_entries": 24 << 20,
                "tails": 9 << 20,
            },
            experts=experts,
            steps="fused",
            speculates=True,
            streaming=StreamingReport(48_210, 6_120, 412, 31 << 30),
        )


def write_runs(folder: Path, steps: int = 600) -> None:
    """A pre-training run with a spike, and two runs that learn from rewards."""
    own = random.Random(7)
    lines: list[dict[str, Any]] = []
    for step in range(steps):
        loss = 1.1 + 4.6 * math.exp(-step / 60) + own.gauss(0, 0.06)
        line: dict[str, Any] = {"step": step, "tokens": step * 4096, "phase": "dense", "qat": False}
        line |= {"next": loss, "accuracy": 1 - loss / 7, "mtp": loss + 0.3, "balance": 4.3 + own.gauss(0, 0.05)}
        line |= {"lr": 0.008 * min(1, step / 40), "grad_norm": 0.3 + abs(own.gauss(0, 0.08))}
        line |= {"max_violation": 0.4 + 2 * math.exp(-step / 90) + abs(own.gauss(0, 0.1)), "spike": None}
        line |= {"tokens_per_second": 1900 + own.gauss(0, 60), "mfu": 0.38 + own.gauss(0, 0.01)}
        if step % 100 == 0 or step == steps - 1:
            load = {str(i): [round(own.lognormvariate(0, 0.3), 2) for _ in range(16)] for i in range(1, 5)}
            line |= {"recall_mass": 0.97, "expert_load": load}
        lines.append(line)
    lines.insert(300, {"step": 300, "tokens": 300 * 4096, "spike": "the loss rose", "back_to": 290, "next": 9.0})
    _write(folder / "base", lines)
    for name, gain in (("chain/grpo", 0.5), ("chain/opd", 0.42)):
        _write(folder / name, [_rewarded(step, gain, own) for step in range(80)])


def _rewarded(step: int, gain: float, own: random.Random) -> dict[str, Any]:
    share = 1 - math.exp(-step / 25)
    parts = {
        f"reward.{domain}.{effort}": min(1.0, max(0.0, base + gain * share + own.gauss(0, 0.04)))
        for domain, base in (("math", 0.2), ("state", 0.4), ("tools", 0.3))
        for effort in ("non-think", "high", "max")
    }
    sample = {
        "prompt": "<｜begin▁of▁sentence｜><｜User｜>What is 17 + 25?<｜Assistant｜><think>",
        "answer": "17 + 25 = 42</think>42",
        "reward": float(step % 3 > 0),
        "length": 14,
    }
    return {
        "step": step, "tokens": 12_000 * step, "phase": "distill", "reward": 0.3 + gain * share + own.gauss(0, 0.03),
        "loss": 0.15 * math.exp(-step / 30), "kl": 0.15 * math.exp(-step / 30), "entropy": 0.18, "length": 61.0,
        "finished": 0.99, "grad_norm": 0.15, "lr": 0.0016, "rollout_tokens_per_second": 960.0, "samples": [sample],
        **parts,
    }  # fmt: skip


def _write(folder: Path, lines: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def fill_ledger(file: Path) -> Ledger:
    """Four weeks of three keys and two models."""
    ledger, own, today = Ledger(file), random.Random(5), datetime.now(UTC).date()
    for back in range(27, -1, -1):
        day = (today - timedelta(days=back)).isoformat()
        for key, weight in (("ann", 4), ("bob", 2), ("ci", 7)):
            for model, price in (("deepseek-v4-flash", 0.15), ("nano", 0.0)):
                prompt = int(weight * own.uniform(20_000, 90_000) * (0.35 if back % 7 in (1, 2) else 1))
                cached, written = int(prompt * own.uniform(0.4, 0.8)), int(prompt * own.uniform(0.1, 0.3))
                cost = ((prompt - cached) * price + written * 4 * price) / 1e6
                ledger.add(Usage(day, key, model, weight * 9, prompt, cached, written, written // 3, cost))
    ledger.close()
    return ledger


def operator_server(tokenizer: Tokenizer, folder: Path, pages: Path | None = None) -> Server:
    """The application over a stub, with a ledger, runs and the architecture of V4-Flash in `folder`."""
    write_runs(folder / "runs")
    ledger = fill_ledger(folder / "usage.sqlite")
    text = "The answer is forty-two because six times seven is forty-two. " * 300
    script = [*tokenizer.encode_text(text), tokenizer.eos_id]
    generator = Busy(script, delay=0.03, context_length=65_536, reused=40)
    server = Server(tokenizer, generator)
    name, config, place = find_config("flash")
    options: dict[str, Any] = {} if pages is None else {"pages": pages}
    counts = {"drafted_total": 0, "accepted_total": 0}

    def counters() -> dict[str, float]:
        generated = sum(call.emitted for call in generator.calls)
        counts["drafted_total"] = int(generated * 0.7)
        counts["accepted_total"] = int(generated * 0.52)
        totals = {"generated_tokens_total": 48_000 + generated, "ended_total": 212, "steps_total": 31_000}
        totals |= {"seconds_total": 620.0, "prefix_lookups_total": 231, "prefix_hits_total": 187}
        totals |= {"prefix_hit_tokens_total": 1_204_000, "prefix_evicted_total": 12, "prompt_tokens_total": 410_000}
        return {**totals, **counts, "reused_tokens_total": 1_204_000}

    server.app = create_app(
        generator,
        tokenizer,
        model_name="deepseek-v4-flash",
        settings=Settings(runs=folder / "runs"),
        counters=counters,
        ledger=ledger,
        architecture=lambda: architecture(name, config, place),
        **options,
    )
    # a curve that began before the page was opened
    rates, now = server.app.state.backend.rates, time.time()
    for second in range(280, 0, -1):
        rates.clock = lambda at=now - second: at
        rates.add(prompt=900 if second % 40 in (3, 4) else 0, generated=int(55 + 25 * math.sin(second / 20)))
    rates.clock = time.time
    return server


def served(server: Server) -> AbstractContextManager[str]:
    """The address of a running server."""
    return listening(server)


if __name__ == "__main__":
    import sys
    import tempfile

    from dsv4.encoding import train_bpe
    from tests.server.conftest import CORPUS

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        demo = operator_server(train_bpe([CORPUS], 420, place / "tokenizer"), place, *map(Path, sys.argv[1:2]))
        with served(demo) as url:
            print(url, flush=True)
            try:
                while True:
                    time.sleep(1)
            except KeyboardInterrupt:
                pass
