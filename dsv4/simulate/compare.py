"""The simulation beside the real engine on one trace and one machine: how far apart they are."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from dsv4.engine.engine import Engine
from dsv4.simulate.cluster import Offered
from dsv4.simulate.drive import SimulatedClock
from dsv4.simulate.engine import SimulatedEngine
from dsv4.simulate.measure import FittedTimes, TimedEngine, fit, measure, sizes_of, small_loads
from dsv4.workload.timing import Timing, TimingSummary, summarise

TURN = 0.1  # seconds: long beside what a change of turns costs, short beside what other programs do
WARM_UP = -1  # the seed of loads that are run and not measured


@dataclass(frozen=True, slots=True)
class Comparison:
    """real, simulated: summaries of one trace. times: what the simulation used."""

    real: TimingSummary
    simulated: TimingSummary
    times: FittedTimes

    def rows(self) -> list[tuple[str, float, float]]:
        """Name, real, simulated."""
        pairs = (self.real, self.simulated)
        found: dict[str, tuple[float, ...]] = {
            "seconds": tuple(s.seconds for s in pairs),
            "output tokens/s": tuple(s.output_rate for s in pairs),
            "total tokens/s": tuple(s.total_rate for s in pairs),
            "cached share": tuple(s.hit_rate or 0.0 for s in pairs),
        }
        for title, name in (("TTFT", "ttft"), ("ITL", "itl"), ("whole", "e2e")):
            for which in ("mean", "p50", "p99"):
                found[f"{title} {which} ms"] = tuple(1000 * getattr(s, name).get(which, 0.0) for s in pairs)
        return [(name, real, simulated) for name, (real, simulated) in found.items()]

    def lines(self) -> list[str]:
        """For people."""
        head = f"{'':<18}{'engine':>12}{'simulated':>12}{'difference':>12}"
        body = [
            f"{name:<18}{real:>12,.2f}{simulated:>12,.2f}{simulated / real - 1:>12.1%}"
            for name, real, simulated in self.rows()
            if real
        ]
        terms = ", ".join(f"{name} {1e6 * value:.3g}" for name, value in self.times.to_dict()["seconds"].items())
        fitted = f"microseconds of processor time, fitted to {self.times.samples:,} steps: {terms}"
        return [head, *body, fitted]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "engine": self.real.to_dict(),
            "simulated": self.simulated.to_dict(),
            "times": self.times.to_dict(),
            "difference": {name: simulated / real - 1 for name, real, simulated in self.rows() if real},
        }


def compare(engine: Engine, offered: Offered, say: Callable[[str], None]) -> Comparison:
    """Measure the steps of an engine like this one on small loads, run the offered load on this one, and simulate the
    same load with the measured times. The clock of both is processor time.

    Both engines share the model and run in turns, because the time of a step changes with what other programs do to
    caches and clock rates: whatever happens then happens to both. The simulation learns of the real run only the
    length of its longest prompt.
    """
    sessions, users, _ = offered.share(1)
    if users is None and offered.rate is None and not offered.trace:
        users = engine.sequences
    longest = max(request.input + request.output for session in sessions for request in session)
    timed, like = TimedEngine(engine), TimedEngine(engine_like(engine))
    say("warming up")
    for one in (timed, like):
        for load, load_users in small_loads(engine, longest, WARM_UP):
            for _ in one.steps(load, load_users, []):
                pass
        one.samples, one.spent = [], 0.0
    say(f"{sum(map(len, sessions))} requests to the engine, and steps measured in turns with it")
    timings: list[Timing] = []
    _in_turns(timed.steps(sessions, users, timings), timed, like, longest)
    real = summarise(timings, offered.limits)
    times = fit(engine.config, like.samples)
    clock = SimulatedClock()
    simulated = SimulatedEngine(engine.config, sizes_of(engine), times, clock)
    found = summarise(simulated.drive(clock, users=users).run(sessions), offered.limits)
    return Comparison(real, found, times)


def engine_like(engine: Engine) -> Engine:
    """Another engine of the same model, with a cache of its own and the same sizes."""
    sizes = sizes_of(engine)
    return Engine(
        engine.model,
        context_length=sizes.context_length,
        cache_tokens=sizes.cache_tokens,
        sequences=sizes.sequences,
        step_tokens=sizes.step_tokens,
        cache_dtype=sizes.cache_dtype,
        reuse=sizes.reuse,
        slowdown=sizes.slowdown,
    )


def _in_turns(running: Iterable[None], timed: TimedEngine, like: TimedEngine, longest: int) -> None:
    """Run the real load to its end while the engine like it is measured for as long; then finish its round of loads, so
    that all of them were measured equally often."""
    measuring, rounds = measure(like, longest), 0
    for _ in running:
        if timed.spent > like.spent + TURN:
            while like.spent < timed.spent:
                rounds = next(measuring)
    done = rounds + 1
    while next(measuring) < done:
        pass
    measuring.close()
