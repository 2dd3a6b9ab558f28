"""Steps after long contexts, whose cache is filled with random rows instead of being computed.

    .venv/bin/python benchmarks/long_context.py [FOLDER] [--contexts N ...] [--chunk N] [--threads N]

FOLDER: a checkpoint, default models/nano. Rows have the layout and the size of real ones, in pages in order, so a step
reads and computes what it does after a real prompt; what the model says means nothing. Contexts are measured in turns.
Both the wall's and the processor's seconds of the median step are told, for one token and for a chunk of a prompt.
"""

import argparse
import statistics
import time
from array import array
from dataclasses import replace
from pathlib import Path

import torch

from dsv4.api.loading import load
from dsv4.api.local_model import LocalModel
from dsv4.bench.results import tell_row
from dsv4.bench.speed import random_prompt
from dsv4.cache.prefix import ReusePolicy
from dsv4.config import ModelConfig
from dsv4.engine.request import Request
from dsv4.generation import SamplingParams

NANO = Path(__file__).resolve().parents[1] / "models" / "nano"
CONTEXTS = (1024, 16384, 65536, 262144, 1048576)
FILLED = 1 << 16  # rows packed at once


def fill(model: LocalModel) -> None:
    """Random rows in all pages and slots."""
    store = model.engine.cache.store
    form, own = store.spec.format, torch.Generator().manual_seed(0)
    for layer in store.layers:
        for rows_MX, dim, stored in (
            (layer.entries_MX, model.config.head_dim, form.store_entry),
            (layer.index_MX, model.config.index_head_dim, form.store_index),
        ):
            for part_RX in () if rows_MX is None else rows_MX.split(FILLED):
                part_RX.copy_(stored(torch.randn(len(part_RX), dim, generator=own)))
        window_SWX = layer.window_SWX
        random = torch.randn(window_SWX.shape[:2].numel(), model.config.head_dim, generator=own)
        window_SWX.copy_(form.store_entry(random).view_as(window_SWX))
        for tail in layer.tails.values():
            tail.normal_(generator=own)


def after(model: LocalModel, context: int, chunk: int) -> Request:
    """A running request with `context` cached tokens and `chunk` more of its prompt to compute."""
    engine = model.engine
    request = engine.submit(random_prompt(model.config.vocab_size, 16), SamplingParams(max_tokens=1 << 30))
    while not request.generated:
        engine.step()
    request.tokens = random_prompt(model.config.vocab_size, context + chunk)
    request.prompt_length, request.cached = context + (chunk if chunk > 1 else 0), context
    place = engine.cache.grow(request.running_place, context)
    request.place = replace(place, pages=array("q", place.pages))
    return request


def seconds(model: LocalModel, context: int, chunk: int, steps: int) -> list[tuple[float, float]]:
    """Wall's and processor's seconds of each of `steps` steps."""
    request, found = after(model, context, chunk), []
    for _ in range(steps):
        wall, cpu = time.perf_counter(), time.process_time()
        model.engine.step()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
        if chunk > 1:  # the same chunk again
            request.tokens, request.cached = request.tokens[: context + chunk], context
    model.engine.cancel(request)
    return found[min(3, steps // 4) :]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", nargs="?", type=Path, default=NANO)
    options.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS)
    options.add_argument("--mode", default="release")
    options.add_argument("--threads", type=int)
    options.add_argument("--steps", type=int, default=40)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--chunk", type=int, default=1, help="tokens of a step; more than one: of a prompt")
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    spare = given.chunk + given.steps + 16
    room = min(max(given.contexts) + spare, ModelConfig.from_file(given.folder).max_position_embeddings)
    contexts = [min(context, room - spare) for context in given.contexts]
    reuse = ReusePolicy(snapshots=0)
    model = load(
        given.folder,
        given.mode,
        context_length=room,
        sequences=1,
        reuse=reuse,
        draft="none",
        threads=given.threads,
        step_tokens=max(512, given.chunk),
    )
    model.engine.ends = frozenset()
    fill(model)
    found: dict[int, list[tuple[float, float]]] = {context: [] for context in contexts}
    for _ in range(given.rounds):
        for context in contexts:
            found[context] += seconds(model, context, given.chunk, given.steps)
    for context, times in found.items():
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        least = min(column for column, _ in times)
        row = {"context": context, "chunk": given.chunk, "wall_us": wall * 1e6, "best_us": least * 1e6}
        tell_row({"benchmark": "long_context", **row, "cpu_us": cpu * 1e6}, given.json)


if __name__ == "__main__":
    main()
