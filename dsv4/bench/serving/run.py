"""The run: one level of load after another, at each of them the endpoints in turns: all meet the same machine."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from dsv4.bench.serving.settings import BenchSettings, LoadLevel
from dsv4.bench.serving.target import BenchTarget
from dsv4.bench.serving.text import messages
from dsv4.workload.timing import Timing, TimingSummary, summarise
from dsv4.workload.trace import Session

LATE = 0.1  # seconds behind its time at which the client is too slow for the load


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """One endpoint at one level of load."""

    target: str
    load: LoadLevel
    summary: TimingSummary
    timings: tuple[Timing, ...]


@dataclass(slots=True)
class BenchReport:
    """All points, and what the endpoints do not tell or do. about: what was sent."""

    about: dict[str, Any]
    targets: dict[str, str]  # name -> URL and model
    warnings: dict[str, list[str]]
    points: list[LoadPoint] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the timings of single requests are left out."""
        points = [
            {"target": point.target, "load": point.load.name, **asdict(point.load), **point.summary.to_dict()}
            for point in self.points
        ]
        return {"about": self.about, "targets": self.targets, "warnings": self.warnings, "points": points}


def run(
    targets: Sequence[BenchTarget],
    settings: BenchSettings,
    say: Callable[[str], None],
    done: Callable[[LoadPoint], None],
) -> BenchReport:
    """Measure every endpoint at every level of load. done: called with each point. Raises RefusedError and
    UnreachableError for an endpoint that answers nothing at the start; later faults are counted."""
    for target in targets:
        target.survey(settings.extra, settings.salt)
    report = BenchReport(
        _about(settings),
        {target.name: f"{target.endpoint.url} {target.endpoint.model}".strip() for target in targets},
        {target.name: target.warnings for target in targets},
    )
    for place, load in enumerate(settings.loads):
        sessions = settings.sessions(place)
        for target in targets:
            say(f"{load.name}: {sum(map(len, sessions))} requests to {target.name}")
            timings = run_load(target, sessions, load, settings)
            point = LoadPoint(target.name, load, summarise(timings, settings.limits), tuple(timings))
            _warn(target, point, settings)
            report.points.append(point)
            done(point)
    return report


def run_load(
    target: BenchTarget, sessions: Sequence[Session], load: LoadLevel, settings: BenchSettings
) -> list[Timing]:
    """The timings of one level of load."""
    timings: list[Timing] = []
    start = time.monotonic()
    clock = _Clock(start, start + settings.seconds, start + settings.seconds + settings.patience)
    with ThreadPoolExecutor(load.users or settings.most) as threads:
        if load.users is not None:
            queue = _shared(sessions)
            users = [threads.submit(_use, target, queue, settings.salt, clock, timings) for _ in range(load.users)]
            for user in users:
                user.result()
        else:
            running = []
            for session in sorted(sessions, key=lambda session: session[0].at or 0.0):
                due = start + (session[0].at or 0.0)
                if due > clock.last:
                    break
                time.sleep(max(0.0, due - time.monotonic()))
                running.append(threads.submit(_converse, target, session, settings.salt, clock, timings, due))
            for one in running:
                one.result()
    return timings


@dataclass(frozen=True, slots=True)
class _Clock:
    """start: of the load. last: after it no request is sent. end: after it answers are cut."""

    start: float
    last: float
    end: float


def _shared(sessions: Sequence[Session]) -> Callable[[], Session | None]:
    """The next session for whichever thread asks; None after the last."""
    left: Iterator[Session] = iter(sessions)
    lock = threading.Lock()

    def take() -> Session | None:
        with lock:
            return next(left, None)

    return take


def _use(
    target: BenchTarget, queue: Callable[[], Session | None], salt: str, clock: _Clock, timings: list[Timing]
) -> None:
    """One user of a closed loop: a session after another."""
    while time.monotonic() < clock.last and (session := queue()) is not None:
        _converse(target, session, salt, clock, timings, 0.0)


def _converse(
    target: BenchTarget, session: Session, salt: str, clock: _Clock, timings: list[Timing], due: float
) -> None:
    """The requests of one session, one after another; after an error the session is over. due: of the first one, 0 =
    when it is sent."""
    answers: dict[str, str] = {}
    for turn, request in enumerate(session):
        if turn:
            due = time.monotonic() + request.delay
            if request.at is not None:  # a trace with times of its own
                due = max(due, clock.start + request.at)
            if due > clock.last:
                return
            time.sleep(max(0.0, due - time.monotonic()))
        said: list[str] = []
        conversation = messages(request.blocks, answers, target.measure, salt)
        timing = target.ask(conversation, request.output, due, clock.end, said)
        timings.append(timing)
        if not timing.ok:
            return
        if request.answer_id:
            answers[request.answer_id] = "".join(said)


def _about(settings: BenchSettings) -> dict[str, Any]:
    sent: dict[str, Any] = {"trace": f"{len(settings.trace)} sessions"} if settings.trace else asdict(settings.workload)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **sent,
        **{
            name: getattr(settings, name)
            for name in ("requests", "seconds", "patience", "most", "speed", "salt", "seed")
        },
        "limits": asdict(settings.limits),
    }


def _warn(target: BenchTarget, point: LoadPoint, settings: BenchSettings) -> None:
    """Add what makes this point say less than it seems to."""
    summary, name = point.summary, point.load.name
    found = []
    if summary.late > LATE and point.load.users is None:
        found.append(f"{name}: a request was sent {summary.late:.1f} s late: the client, or its --most, was too small")
    if summary.short:
        found.append(f"{name}: {summary.short} of {summary.finished} answers ended before the length asked for")
    if summary.unfinished:
        found.append(f"{name}: {summary.unfinished} answers were cut when the time was over")
    wanted = sum(timing.wanted for timing in point.timings if timing.ok)
    if summary.finished and summary.generated > 1.05 * wanted + summary.requests:
        found.append(f"{name}: answers are longer than asked for")
    target.warnings += found
