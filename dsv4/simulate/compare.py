"""The simulation beside the real engine on one trace and one machine: how far apart they are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dsv4.engine.engine import Engine
from dsv4.simulate.cluster import Offered
from dsv4.simulate.drive import SimulatedClock
from dsv4.simulate.engine import SimulatedEngine
from dsv4.simulate.measure import FittedTimes, TimedEngine, fit, measure, sizes_of
from dsv4.workload.timing import TimingSummary, summarise

ROUNDS = 2  # of measurements, one before the real run and one after it: the machine may change meanwhile


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
    """Measure the steps of the engine on small loads of their own, run the offered load on it, and simulate the same
    load with the measured times. The clock of both is the engine's processor time."""
    timed = TimedEngine(engine)
    sessions, users, _ = offered.share(1)
    if users is None and offered.rate is None and not offered.trace:
        users = engine.sequences
    say("measuring steps")
    measure(timed)
    say(f"{sum(map(len, sessions))} requests to the engine")
    samples, timed.samples = timed.samples, []
    real = summarise(timed.run(sessions, users), offered.limits)
    timed.samples = samples  # the simulation may not learn from the run that it is held against
    for seed in range(1, ROUNDS):
        measure(timed, seed)
    times = fit(engine.config, timed.samples)
    clock = SimulatedClock()
    simulated = SimulatedEngine(engine.config, sizes_of(engine), times, clock)
    found = summarise(simulated.drive(clock, users=users).run(sessions), offered.limits)
    return Comparison(real, found, times)
