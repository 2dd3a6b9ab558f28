"""The state of the engine for its page: active requests, pages and slots, kept prefixes, experts, tokens by second."""

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dsv4.generation import EngineReport, PrefixReport, RequestReport
from dsv4.server.backend import Backend
from dsv4.server.backend.active import ActiveAnswer

# a younger report is given again, so that many open pages ask the engine no more often than one
FRESH_SECONDS = 0.5
# how long a page waits for the end of a long step before it gets the report before it
PATIENCE_SECONDS = 1.0
MEMORY = Path("/proc/self/statm")


class EngineState:
    """The state of one server's engine. At most one report is asked for at a time, and the engine makes it between two
    steps; everything else is counters that are read as they are."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._report: EngineReport | None = None
        self._made = 0.0
        self._asked: asyncio.Task[EngineReport] | None = None

    async def of_key(self, key: str, since: int, *, experts: bool) -> dict[str, Any]:
        """What the owner of a key may see: an operator everything, others their own requests. since: the second after
        which the rates begin. experts: with the uses of all experts, which are many numbers."""
        backend = self._backend
        report = await self._recent()
        everything = backend.settings.keys.sees_all(key)
        answers = [tell() for tell in backend.active.values()]
        shown = [answer for answer in answers if everything or answer.key == key]
        found: dict[str, Any] = {
            "model": backend.model_name,
            "context_length": backend.generator.context_length,
            "failing": backend.generator.failing,
            "operator": everything,
            "requests": _requests(shown, report),
            "others": len(answers) - len(shown),
            "counters": dict(backend.counters() if backend.counters else {}),
            "rates": backend.rates.since(since),
            "resident": resident_bytes(),
            "report": None,
        }
        if report is not None:
            found["report"] = _report(report, time.monotonic() - self._made)
            if experts:
                found["report"]["experts"] = {str(layer): list(counts) for layer, counts in report.experts.items()}
        return found

    async def _recent(self) -> EngineReport | None:
        """A report that is as new as the engine's last step allows; None if it makes none, or has not made one yet."""
        if not self._backend.generator.reports:
            return None
        if self._report is not None and time.monotonic() - self._made < FRESH_SECONDS:
            return self._report
        loop = asyncio.get_running_loop()
        # a test may use one application in several loops, one after another
        if self._asked is None or self._asked.done() or self._asked.get_loop() is not loop:
            self._asked = loop.create_task(self._ask())
        done, _ = await asyncio.wait({self._asked}, timeout=PATIENCE_SECONDS)
        for task in done:
            task.result()
        return self._report

    async def _ask(self) -> EngineReport:
        report = await self._backend.generator.report()
        self._report, self._made = report, time.monotonic()
        return report


def resident_bytes() -> int | None:
    """The memory that this process holds; None where the system does not tell."""
    try:
        pages = int(MEMORY.read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _requests(answers: Sequence[ActiveAnswer], report: EngineReport | None) -> list[dict[str, Any]]:
    """The answers in the order in which the engine has them; those that it does not know stand at the end."""
    known: dict[str, RequestReport] = {one.label: one for one in report.requests} if report is not None else {}
    places = {label: place for place, label in enumerate(known)}
    rows = sorted(answers, key=lambda answer: places.get(answer.id, len(places)))
    return [{**asdict(answer), **_progress(answer, known.get(answer.id))} for answer in rows]


def _progress(answer: ActiveAnswer, known: RequestReport | None) -> dict[str, Any]:
    """state: waiting for a place, in its prompt, or in its answer; None where only the engine could say."""
    if answer.generated:
        state: str | None = "answer"
    elif known is not None:
        state = "prompt" if known.running else "waiting"
    else:
        state = "prompt" if answer.done else None
    found: dict[str, Any] = {"state": state}
    if known is not None:
        found |= {"pages": known.pages, "drafts": known.drafts, "priority": known.priority}
    return found


def _report(report: EngineReport, age: float) -> dict[str, Any]:
    return {
        "age": round(age, 2),
        "steps": report.steps,
        "speculates": report.speculates,
        "page_tokens": report.page_tokens,
        "pages": asdict(report.pages),
        "slots": asdict(report.slots),
        "cache_bytes": dict(report.cache_bytes),
        "streaming": None if report.streaming is None else asdict(report.streaming),
        "prefixes": _tree(report.prefixes),
    }


def _tree(prefixes: Sequence[PrefixReport]) -> list[dict[str, Any]]:
    """The prefixes without the digests of their owners: a number tells owners apart."""
    numbers: dict[str, int] = {}
    rows = []
    for prefix in prefixes:
        owner = numbers.setdefault(prefix.owner, len(numbers))
        rows.append({**asdict(prefix), "owner": owner})
    return rows
