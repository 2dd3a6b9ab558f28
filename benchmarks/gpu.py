"""Checks the model, the engine and training on a card against the CPU, and measures their speed, in under five minutes.

    PYTHONPATH=. python3 benchmarks/gpu.py --out runs/gpu [--device cuda:1] [--small] [--only logits] [--seconds 280]

Needs torch and numpy. Only the check `recipe` needs more (pydantic, tokenizers, llguidance), and says so where one is
missing. A check that fails is reported, and the next one runs; the exit status is 1 if one failed. Writes gpu.json and
gpu.txt into --out. What is compared, and with which bounds, stands in the docstring of each check; a bound of None
means that a value is only reported.

A row's value is bad where it is above the bound. The reference is the same model on the CPU with `impl="torch"`.
"""

import argparse
import json
import platform
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsv4.checkpoint import load_into, open_folder
from dsv4.config import Mode, ModelConfig
from dsv4.engine import Engine
from dsv4.generation import SamplingParams
from dsv4.kernels import quant, rows
from dsv4.model.device import card_memory, choose_device, describe_device, synchronize
from dsv4.model.init import init_weights
from dsv4.model.layers import BF16, FP32, MODES
from dsv4.model.transformer import Transformer
from dsv4.testing.tiny import tiny_config, tiny_model
from dsv4.training.batch import Batch, Totals
from dsv4.training.clipping import clip_gradients
from dsv4.training.loss import compute_loss
from dsv4.training.mixed import Masters
from dsv4.training.param_groups import make_optimizers
from dsv4.training.schedule import Phase
from dsv4.training.throughput import matmul_rate

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
NANO = ROOT / "models" / "nano"
# prompts of nano in its own tokens: "What is 17 + 25?", "Sort these numbers in ascending order: ...", "Who are you?"
ASKED = (
    (0, 3, 573, 283, 235, 31, 37, 872, 235, 32, 35, 45, 4, 5),
    (0, 3, 1711, 1354, 1066, 304, 417, 81, 2395, 805, 40, 235, 31, 34, 26, 235, 33, 26, 235, 37, 37, 26, 235, 32, 30,
     4, 5),
    (0, 3, 1503, 497, 391, 45, 4, 5),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """A value that was measured. bound: the largest that is right; None = only reported."""

    check: str
    what: str
    value: float
    unit: str = ""
    bound: float | None = None

    @property
    def good(self) -> bool:
        return self.bound is None or self.value <= self.bound


@dataclass(frozen=True, slots=True)
class Setting:
    """device: what is checked. small: sizes for a test on a CPU. end: when the last check may begin."""

    device: torch.device
    small: bool
    out: Path
    end: float


Rows = Iterator[Row]


def machine(setting: Setting) -> Rows:
    """What runs: memory, and the rates of torch's own products."""
    device = setting.device
    if device.type == "cuda":
        yield Row("machine", "memory of the card", card_memory(device) / 2**30, "GiB")
    size = 256 if setting.small else 4096
    yield Row("machine", "product in float32", matmul_rate(device, size, 0.1) / 1e12, "TFLOP/s")
    a = torch.randn(size, size, device=device).bfloat16()
    yield Row("machine", "product in bfloat16", 2 * size**3 / seconds(lambda: a @ a, device) / 1e12, "TFLOP/s")


def formats(setting: Setting) -> Rows:
    """Casts to and from FP8 and FP4 and packed cache rows: the same bits as on the CPU (0 = all equal)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 256, generator=generator) * torch.randn(200, 1, generator=generator).exp() * 10
    fp8, fp4 = quant.quantize_fp8_weight(x), quant.quantize_fp4_weight(x)
    entries, keys = rows.pack_entry(x, 64), rows.pack_index(x)
    casts: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "quantize_fp8": (quant.quantize_fp8, (x,)),
        "simulate_fp8": (quant.simulate_fp8, (x,)),
        "simulate_fp4": (quant.simulate_fp4, (x,)),
        "hadamard": (quant.hadamard, (x,)),
        "quantize_fp8_weight": (quant.quantize_fp8_weight, (x,)),
        "quantize_fp4_weight": (quant.quantize_fp4_weight, (x,)),
        "dequantize_fp8_weight": (quant.dequantize_fp8_weight, fp8),
        "dequantize_fp4_weight": (quant.dequantize_fp4_weight, fp4),
        "pack_entry": (rows.pack_entry, (x, 64)),
        "unpack_entry": (rows.unpack_entry, (entries, 256, 64, torch.float32)),
        "pack_index": (rows.pack_index, (x,)),
        "unpack_index": (rows.unpack_index, (keys, 256)),
    }
    for name, (run, given) in casts.items():
        moved = [value.to(setting.device) if isinstance(value, Tensor) else value for value in given]
        pairs = zip(flat(run(*moved)), flat(run(*given)), strict=True)
        different = sum(int((bits(a.cpu()) != bits(b)).sum()) for a, b in pairs)
        yield Row("formats", name, different, "different bytes", 0)


def logits(setting: Setting) -> Rows:
    """Logits of tiny random models of three geometries and of nano. fp32: the largest difference by the largest logit,
    at most 1e-3. bf16, release: the root mean square distance from the CPU's fp32 logits, in units of the CPU's own
    distance, at most 1.5, because choices of experts may turn at a rounding."""
    for name, models in geometries(setting).items():
        tokens = prompt(models("fp32").config.vocab_size, 150 if setting.small else 300)
        lengths = [140, len(tokens) - 140]
        exact = logits_on(CPU, models("fp32"), tokens, lengths)
        for mode in MODES:
            here = exact if mode == "fp32" else logits_on(CPU, models(mode), tokens, lengths)
            there = logits_on(setting.device, models(mode), tokens, lengths)
            same = float((here.argmax(1) == there.argmax(1)).float().mean())
            yield Row("logits", f"{name} {mode}: same first choice", same)
            if mode == "fp32":
                value, bound = float((there - here).abs().max() / here.abs().max()), 1e-3
            else:
                value, bound = float((there - exact).norm() / (here - exact).norm().clamp(min=1e-9)), 1.5
            yield Row("logits", f"{name} {mode}", value, "difference" if mode == "fp32" else "distance", bound)


def texts(setting: Setting) -> Rows:
    """Greedy answers of nano by the engine. fp32: on the card, in one piece, in chunks of 7 tokens, batched, and from
    reused prefixes, equal to the CPU's answers (0 = all tokens equal). bf16, release: the share of tokens after the
    first one that differs from the answer in one piece, which is only reported."""
    count = 8 if setting.small else 48
    prompts = [list(asked) for asked in ASKED]
    prompts.append([*prompts[0][:2], *prompt(3072, 60 if setting.small else 400), *prompts[0][2:]])
    for mode in ("fp32",) if setting.small else MODES:
        there = Engine(nano(mode, setting.device), context_length=1024, step_tokens=512, sequences=4)
        if mode == "fp32":
            here = Engine(nano(mode, CPU), context_length=1024, step_tokens=512, sequences=4, fused=False)
            wanted = [answer(here, asked, count) for asked in prompts]
        whole = [answer(there, asked, count) for asked in prompts]
        wanted = wanted if mode == "fp32" else whole
        chunked = Engine(there.model, context_length=1024, step_tokens=7, sequences=4)
        ways = {
            "in one piece": whole,
            "in chunks": [answer(chunked, asked, count) for asked in prompts],
            "batched": together(there, prompts, count),
            "with reused prefixes": [answer(there, asked, count) for asked in prompts],
        }
        for way, found in ways.items():
            lost = sum(after_first_difference(a, b) for a, b in zip(found, wanted, strict=True))
            share = lost / sum(map(len, wanted))
            yield Row("texts", f"nano {mode} {way}", share, "of tokens differ", 0 if mode == "fp32" else None)


def training(setting: Setting) -> Rows:
    """Losses of some steps of nano's shape from the same weights on the same batches: the largest relative difference
    from the CPU's. fp32 with Muon and with AdamW at most 2e-3, bf16 with fp32 masters at most 3e-2."""
    steps, length = (2, 64) if setting.small else (8, 256)
    runs: dict[str, dict[str, Any]] = {
        "fp32 muon": {"kind": "muon"},
        "fp32 adamw": {"kind": "adamw"},
        "bf16 muon": {"kind": "muon", "numerics": BF16},
    }
    for name, options in runs.items():
        here, there = (losses(device, steps, length, **options) for device in (CPU, setting.device))
        worst = max(abs(a - b) / abs(b) for a, b in zip(there, here, strict=True))
        yield Row("training", f"{steps} steps, {name}", worst, "difference", 3e-2 if "bf16" in name else 2e-3)
        yield Row("training", f"{name}: last loss", there[-1])


def training_speed(setting: Setting) -> Rows:
    """Tokens a second of whole steps of nano's shape, and the memory of the tensors: only reported."""
    tokens = 128 if setting.small else 8192
    for name, numerics in (("fp32", FP32), ("bf16", BF16)):
        step = trainable(setting.device, numerics)
        batch = batch_of(tokens, min(tokens, 1024), 0).to(setting.device)
        reset_peak(setting.device)
        step(batch)
        took = seconds(lambda step=step, batch=batch: step(batch), setting.device, 1 if setting.small else 5)
        yield Row("training speed", f"nano {name}, {tokens:,} tokens a step", tokens / took, "tokens/s")
        yield from peak("training speed", f"nano {name}: peak memory", setting.device)


def engine_speed(setting: Setting) -> Rows:
    """Prefill and decode of nano, and of 120M random parameters, in every mode: only reported."""
    length, count = (70, 4) if setting.small else (2048, 32)
    for name in ("nano",) if setting.small else ("nano", "b120m"):
        for mode in ("fp32",) if setting.small else MODES:
            if name == "b120m" and mode == "release":
                continue  # its weights are floats
            reset_peak(setting.device)
            model = nano(mode, setting.device) if name == "nano" else b120m(mode, setting.device)
            engine = Engine(model, context_length=2 * length, step_tokens=2048, sequences=8)
            engine.ends = frozenset()
            given = prompt(model.config.vocab_size, length)
            answer(engine, given[:16], 2)
            took = seconds(lambda e=engine, given=given: answer(e, given[::-1], 1), setting.device, 1)
            yield Row("engine speed", f"{name} {mode}: prefill of {length:,}", length / took, "tokens/s")
            for batch in (1, 8):
                asked = [given[i : i + 20] for i in range(batch)]
                took = seconds(lambda e=engine, a=asked: together(e, a, count), setting.device, 1)
                what = f"{name} {mode}: decode of {batch} sequence(s)"
                yield Row("engine speed", what, batch * count / took, "tokens/s")
            yield from peak("engine speed", f"{name} {mode}: peak memory", setting.device)


def recipe(setting: Setting) -> Rows:
    """Some steps of recipes/nano/base.toml by the trainer, with its data: the loss falls."""
    from dsv4.api.tokenizer import load_tokenizer
    from dsv4.training.data import open_sources
    from dsv4.training.recipe import Recipe
    from dsv4.training.team import Alone
    from dsv4.training.trainer import Trainer

    changes = [f"data.tokenizer={NANO}", "data.pool=2", "batch.start=512"] if setting.small else []
    made = Recipe.from_file(ROOT / "recipes" / "nano" / "base.toml", [f"data.tokenizer={NANO}", *changes])
    tokenizer = load_tokenizer(NANO, 3072)
    assert tokenizer is not None
    sources = open_sources(made, tokenizer, setting.out / "data")
    trainer = Trainer(made, setting.out / "run", tokenizer, sources, team=Alone(setting.device))
    records = [trainer.advance() for _ in range(2 if setting.small else 20)]
    yield Row("recipe", "first loss", records[0].losses["next"])
    bound = None if setting.small else records[0].losses["next"]
    yield Row("recipe", "last loss", records[-1].losses["next"], "", bound)
    yield Row("recipe", "speed of the last step", records[-1].tokens_per_second, "tokens/s")


CHECKS = (machine, formats, logits, texts, training, training_speed, engine_speed, recipe)


def geometries(setting: Setting) -> dict[str, Callable[[Mode], Transformer]]:
    """Models on the CPU by name: each call makes the same weights in the numerics of a mode."""

    def tiny(config: ModelConfig) -> Callable[[Mode], Transformer]:
        return lambda mode: tiny_model(config, numerics=MODES[mode], impl="torch")

    configs = {
        "tiny": tiny_config(num_hidden_layers=3, compress_ratios=(0, 4, 128, 0)),
        "tiny wide": tiny_config(hidden_size=128, num_attention_heads=8, index_topk=16, n_routed_experts=16),
        "tiny deep": tiny_config(num_hidden_layers=7, compress_ratios=(0, 0, 4, 128, 4, 128, 4, 0), head_dim=64),
    }
    if setting.small:
        return {"tiny": tiny(configs["tiny"])}
    return {**{name: tiny(config) for name, config in configs.items()}, "nano": lambda mode: nano(mode, CPU)}


def nano(mode: Mode, device: torch.device) -> Transformer:
    opened = open_folder(NANO)
    with torch.device("meta"):
        model = Transformer(opened.config, MODES[mode], impl="torch")
    load_into(model, opened.config, opened.reader, mode)
    return model.requires_grad_(False).eval().to(device)


def b120m(mode: Mode, device: torch.device) -> Transformer:
    from benchmarks.random_model import SHAPES

    return init_weights(Transformer(SHAPES["b120m"], MODES[mode]), 0).requires_grad_(False).eval().to(device)


@torch.inference_mode()
def logits_on(device: torch.device, model: Transformer, tokens: list[int], lengths: list[int]) -> Tensor:
    model.to(device)
    return model.logits(model.hidden(torch.tensor(tokens, device=device), model.pack(lengths))).cpu()


def prompt(vocabulary: int, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(min(64, vocabulary - 1), vocabulary, (length,), generator=generator).tolist()


def answer(engine: Engine, asked: list[int], count: int) -> list[int]:
    events = engine.generate(asked, SamplingParams(max_tokens=count, temperature=0))
    return [event.token for event in events if event.token is not None]


def together(engine: Engine, asked: list[list[int]], count: int) -> list[list[int]]:
    """Answers to all prompts at once."""
    params = SamplingParams(max_tokens=count, temperature=0)
    found: dict[Any, list[int]] = {engine.submit(one, params): [] for one in asked}
    while engine.busy:
        for request, event in engine.step():
            if event.error is not None:
                raise RuntimeError(event.error)
            found[request] += [] if event.token is None else [event.token]
    return list(found.values())


def after_first_difference(found: list[int], wanted: list[int]) -> int:
    """How many of the wanted tokens come after the first one that is not found."""
    same = next((i for i, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]), len(found))
    return len(wanted) - min(same, len(wanted))


@cache
def nano_shape() -> ModelConfig:
    return open_folder(NANO).config


def batch_of(tokens: int, length: int, seed: int) -> Batch:
    """Documents that count up from anywhere, so that a few steps learn something."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(64, 1000, (tokens // length, 1), generator=generator)
    ids = (first + torch.arange(length)).flatten()
    return Batch(ids, (length,) * (tokens // length), torch.ones(len(ids)))


def trainable(device: torch.device, numerics: Any = FP32, kind: Any = "muon") -> Callable[[Batch], float]:
    """A step of training of nano's shape from new weights: batch to loss."""
    model = init_weights(Transformer(nano_shape(), numerics), 0).to(device)
    masters = Masters(model)
    optimizers = make_optimizers(model.config, masters.named_parameters(), 1e-3, kind=kind)

    def step(batch: Batch) -> float:
        found = compute_loss(model, batch, phase=Phase.SPARSE, totals=Totals.of([batch]))
        found.total.backward()
        masters.collect()
        clip_gradients([p for _, p in masters.named_parameters()], 1.0)
        optimizers.step()
        masters.publish()
        optimizers.zero_grad()
        return float(found.parts["next"])

    return step


def losses(device: torch.device, steps: int, length: int, **options: Any) -> list[float]:
    step = trainable(device, **options)
    return [step(batch_of(2 * length, length, i).to(device)) for i in range(steps)]


def seconds(run: Callable[[], object], device: torch.device, times: int = 3) -> float:
    """The mean of some calls, after one that does not count where several do."""
    if times > 1:
        run()
    synchronize(device)
    began = time.perf_counter()
    for _ in range(times):
        run()
    synchronize(device)
    return (time.perf_counter() - began) / times


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak(check: str, what: str, device: torch.device) -> Rows:
    if device.type == "cuda":
        yield Row(check, what, torch.cuda.max_memory_allocated(device) / 2**20, "MiB")


def flat(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [part for one in value for part in flat(one)]


def bits(value: Tensor) -> Tensor:
    return value.contiguous().view(torch.uint8)


def run_checks(setting: Setting, chosen: list[Callable[[Setting], Rows]]) -> tuple[list[Row], dict[str, str]]:
    """All rows, and the error of each check that did not come to its end."""
    found, failed = list[Row](), dict[str, str]()
    for check in chosen:
        name = check.__name__
        if time.monotonic() > setting.end:
            failed[name] = "not run: the time was over"
            print(f"{name}: {failed[name]}", flush=True)
            continue
        began = time.monotonic()
        try:
            for row in check(setting):
                found.append(row)
                bound = "" if row.bound is None else f"  (at most {row.bound:g}){'' if row.good else '  WRONG'}"
                print(f"{row.check:15} {row.what:45} {row.value:14.6g} {row.unit}{bound}", flush=True)
        except Exception as error:  # the border of a check: the others are to run
            failed[name] = traceback.format_exc()
            print(f"{name}: FAILED: {type(error).__name__}: {str(error).splitlines()[:1]}", flush=True)
        print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)
    return found, failed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cpu, cuda or cuda:N")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for gpu.json and gpu.txt")
    parser.add_argument("--small", action="store_true", help="the smallest sizes, to try the script on a CPU")
    parser.add_argument("--seconds", type=float, default=280, help="no check begins later")
    parser.add_argument("--only", nargs="*", choices=[check.__name__ for check in CHECKS])
    given = parser.parse_args(arguments)
    device = choose_device(given.device, "--device")
    given.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    setting = Setting(device, given.small, given.out, began + given.seconds)
    about = {"device": describe_device(device), "torch": torch.__version__, "python": platform.python_version()}
    print("  ".join(f"{name}: {value}" for name, value in about.items()), flush=True)
    chosen = [check for check in CHECKS if not given.only or check.__name__ in given.only]
    found, failed = run_checks(setting, chosen)
    wrong = [f"{row.check}: {row.what}" for row in found if not row.good]
    about |= {"small": given.small, "seconds": round(time.monotonic() - began, 1)}
    report = {**about, "rows": [{**asdict(row), "good": row.good} for row in found], "failed": failed, "wrong": wrong}
    (given.out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    lines = [f"{row.check}\t{row.what}\t{row.value:.6g}\t{row.unit}\t{row.bound}\t{row.good}" for row in found]
    (given.out / "gpu.txt").write_text("\n".join([*lines, *failed]) + "\n", encoding="utf-8")
    print(f"{len(found)} values in {about['seconds']} s; wrong: {wrong or 'none'}; failed: {list(failed) or 'none'}")
    return 1 if wrong or failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
