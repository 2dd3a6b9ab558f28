"""Tells how far a step is that reads experts from the disk (`--expert-memory`): the first token of a large model can
take a minute."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

PATIENCE = 2.0  # seconds of one step before it is told
POLLED = 0.25
LINE_EVERY = 10.0  # seconds between two lines where lines cannot be overwritten

Piece = TypeVar("Piece")


@contextmanager
def reading_told(say: Callable[[int | None], None]) -> Iterator[None]:
    """During the block, a thread calls `say` with the percentage of a step that takes long because it reads experts,
    several times a second, and with None when the step is over."""
    over = threading.Event()

    def follow() -> None:
        residency = sys.modules.get("dsv4.kernels.moe.residency")  # a stub in place of a model comes without it
        since, last, told = time.monotonic(), 0, False
        while residency is not None and not over.wait(POLLED):
            counts = residency.expert_counts()
            if not counts.layers or counts.layer < last:  # no step, or another one
                since = time.monotonic()
            last = counts.layer
            if counts.layers and counts.taken and time.monotonic() - since >= PATIENCE:
                told = True
                say(100 * counts.layer // counts.layers)
            elif told and not counts.layers:
                told = False
                say(None)
        if told:
            say(None)

    thread = threading.Thread(target=follow, name="reading experts", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def until_first(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The pieces of an answer. Until the first one comes, stderr shows the progress of reading experts."""
    left = iter(pieces)
    with reading_told(on_stderr()):
        first = next(left, None)
    if first is not None:
        yield first
        yield from left


def on_stderr() -> Callable[[int | None], None]:
    """A line on stderr: one that changes and goes away in a terminal, elsewhere a new one every few seconds."""
    live, next_line = sys.stderr.isatty(), time.monotonic()

    def say(percent: int | None) -> None:
        nonlocal next_line
        text = "" if percent is None else f"reading experts {percent} %"
        if live:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        elif text and time.monotonic() >= next_line:
            next_line = time.monotonic() + LINE_EVERY
            print(text, file=sys.stderr, flush=True)

    return say


def in_log() -> Callable[[int | None], None]:
    """A line of the log every few seconds."""
    from dsv4.observe import log

    next_line = time.monotonic()

    def say(percent: int | None) -> None:
        nonlocal next_line
        if percent is not None and time.monotonic() >= next_line:
            next_line = time.monotonic() + LINE_EVERY
            log("reading_experts", percent=percent)

    return say
