"""The order of generating, learning and publishing: in turn, or one batch generated while another is learned from.

    in turn     generate k | learn k | keep, publish k+1 | generate k+1 | ...
    one ahead   generate k | learn k, and generate k+1 with the weights before | keep, publish k+1 | ...

Both orders are fixed: which weights a batch is generated with never depends on how long anything takes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from dsv4.posttraining.types import Group

Generate = Callable[[int], Awaitable[Sequence[Group]]]
Learn = Callable[[int, Sequence[Group]], Awaitable[Mapping[str, Any]]]
Publish = Callable[[Mapping[str, Any], int], Awaitable[None]]
Keep = Callable[[int], Awaitable[None]]


async def run_steps(
    steps: range, generate: Generate, learn: Learn, publish: Publish, *, keep: Keep | None = None, ahead: bool = False
) -> None:
    """Learn from batches `steps`.

    generate: makes batch k. learn: updates on it and returns the new weights; what computes belongs in another thread
    (`asyncio.to_thread`), or nothing runs beside it. publish: hands the weights, version k + 1, to the engine
    (`WeightSink.publish`). keep: writes checkpoint k + 1. It is called when the batch that the old weights were to
    generate is in its log, so a run resumed at k + 1 finds all tokens that the new weights must not choose.
    ahead: batch k + 1 is generated with the weights that batch k was generated with, or one version newer, while batch
    k is learned from. What one of them raises stops the others.
    """
    upcoming: asyncio.Future[Sequence[Group]] | None = None
    try:
        for step in steps:
            groups = await (upcoming or asyncio.ensure_future(generate(step)))
            upcoming = asyncio.ensure_future(generate(step + 1)) if ahead and step + 1 in steps else None
            weights = await learn(step, groups)
            if upcoming is not None:
                await upcoming
            if keep is not None:
                await keep(step + 1)
            await publish(weights, step + 1)
    finally:
        if upcoming is not None and not upcoming.done():
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)
