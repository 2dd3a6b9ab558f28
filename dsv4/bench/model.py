"""What `dsv4 bench model` measures: a whole model beside what its bytes and its arithmetic allow on this machine.

Decoding reads every active weight once, so its floor is the rate at which a plain sum reads memory; prefilling is held
against torch's own fp32 matrix product, several streams against one. A figure and its yardstick are measured in turns.
"""

import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dsv4.api.local_model import LocalModel
from dsv4.bench.kernels import Rate, in_turns, matmul_job, read_job
from dsv4.bench.speed import Ours, random_prompt
from dsv4.generation import SamplingParams
from dsv4.model import accounting

STREAMS = (2, 4, 8)
PROMPTS = (512, 4096)
DECODED = 64
ROUNDS = 3


def streams_rate(model: LocalModel, streams: int, prompt: int = 128, tokens: int = DECODED) -> float:
    """Tokens/s of `streams` requests together while all of them decode, `tokens` each, after prompts of `prompt` or
    a few more."""
    engine = model.engine
    params = SamplingParams(max_tokens=tokens + 1, temperature=0)
    requests = {engine.submit(random_prompt(model.config.vocab_size, prompt + i), params) for i in range(streams)}
    answering: set[object] = set()
    while answering != requests:
        answering |= {request for request, event in engine.step() if event.token is not None}
    before, start = engine.counts.generated_tokens, time.perf_counter()
    while engine.busy:
        engine.step()
    return (engine.counts.generated_tokens - before) / (time.perf_counter() - start)


def model_rates(folder: Path, options: Mapping[str, Any]) -> tuple[str, Iterator[Rate]]:
    """The mode that runs, and decoding, prefilling and batching, one by one. options: of dsv4.load."""
    wanted = {**options, "sequences": max(STREAMS)}
    ours = Ours(folder, max(PROMPTS) + DECODED, **wanted)
    return ours.model.mode, _rates(ours)


def _rates(ours: Ours) -> Iterator[Rate]:
    model = ours.model
    assert model.plan is not None
    size, read = model.plan.read_per_token, read_job()
    read.run()
    decode, sums = in_turns(ROUNDS, lambda: ours.run(PROMPTS[0], DECODED).decode_rate, read.rate)
    yield Rate(f"decode, {size / 1e6:,.0f} MB a token", decode * size / 1e9, sums, "GB/s")
    product, parameters = matmul_job(512), accounting.parameters(model.config)
    product.run()
    # multiply-adds of the weights alone, the head left out: attention comes on top
    work = 2 * (parameters.active - parameters.head) / 1e9
    for length in PROMPTS:
        rate, products = in_turns(ROUNDS, lambda length=length: ours.run(length, 1).prefill_rate, product.rate)
        yield Rate(f"prefill, {length:,} tokens", work * rate, products, "GFLOP/s")
    for streams in STREAMS:
        many, one = in_turns(1, partial(streams_rate, model, streams), partial(streams_rate, model, 1))
        yield Rate(f"decode, {streams} streams beside one", many, one, "tok/s")
