"""The simulation makes the decisions of the real engine: same steps, same hits, same order, on the same clock."""

from collections.abc import Sequence

import pytest

from dsv4.cache.prefix import ReusePolicy
from dsv4.engine import Engine
from dsv4.engine.batching import Emitted
from dsv4.simulate.drive import Drive, SimulatedClock, block_tokens
from dsv4.simulate.engine import SimulatedEngine
from dsv4.simulate.measure import sizes_of
from dsv4.simulate.shape import StepShape
from dsv4.testing.tiny import tiny_config, tiny_model
from dsv4.workload.kinds import Workload, poisson
from dsv4.workload.timing import Timing
from dsv4.workload.trace import PromptBlock, Session, TraceRequest


class StepsOfTokens:
    """A step takes a second and a hundredth for each token."""

    def __init__(self) -> None:
        self.shapes: list[StepShape] = []

    def seconds(self, step: StepShape) -> float:
        self.shapes.append(step)
        return 1 + step.tokens / 100


def real(engine: Engine, sessions: Sequence[Session], users: int | None) -> tuple[list[Timing], list[StepShape]]:
    """The real engine on the same clock."""
    clock, times = SimulatedClock(), StepsOfTokens()
    engine.ends, engine.clock, run = frozenset(), lambda: clock.now, engine.runner.run

    def counted(chunks):  # type: ignore[no-untyped-def]
        clock.now += times.seconds(StepShape.of(chunks))
        return run(chunks)

    engine.runner.run = counted  # type: ignore[method-assign]

    def step() -> list[Emitted]:
        return engine.step()

    return Drive(engine, clock, step, users=users).run(sessions), times.shapes


AGENTS = Workload("agent", input=40, output=6, shared=150, turns=3, tool=20, delay=2.0)


@pytest.mark.parametrize("slowdown", [None, 1.2])
@pytest.mark.parametrize(
    ("sessions", "users", "pages"),
    [
        (AGENTS.sessions(4, "a"), 3, 12),
        (poisson(AGENTS.sessions(4, "b"), 0.1), None, 12),
        (Workload("prefix", input=30, output=5, shared=130).sessions(6, "c"), 6, 12),
        (Workload(input=300, output=230).sessions(4, "d"), 4, 4),  # too few pages: requests are preempted
    ],
)
def test_steps_are_those_of_the_engine(
    sessions: list[Session], users: int | None, pages: int, slowdown: float | None
) -> None:
    reuse = ReusePolicy(snapshots=6)
    options = {"context_length": 1024, "cache_tokens": 256 * pages, "sequences": 3, "step_tokens": 64, "reuse": reuse}
    engine = Engine(tiny_model(tiny_config(vocab_size=997)), slowdown=slowdown, **options)  # type: ignore[arg-type]
    expected, steps = real(engine, sessions, users)
    clock, times = SimulatedClock(), StepsOfTokens()
    simulated = SimulatedEngine(engine.config, sizes_of(engine), times, clock)
    found = simulated.drive(clock, users=users).run(sessions)
    assert times.shapes == steps
    assert found == expected
    limited = [step.tokens for step in steps if any(p.rows == p.count for p in step.parts)]
    assert slowdown is None or max(limited) < 64, "steps with answers are not filled with prompts"
    assert simulated.counts.preempted == engine.counts.preempted
    assert (simulated.counts.preempted > 0) == (pages == 4)
    assert sum(timing.cached or 0 for timing in found) > 0 or pages == 4
    assert simulated.check_integrity()


def test_a_later_turn_waits_for_answer_and_tool() -> None:
    session = (
        TraceRequest((PromptBlock("a", 10),), 3, at=1.0),
        TraceRequest((PromptBlock("a", 10), PromptBlock("b", 5)), 2, delay=4.0),
    )
    model = tiny_config()
    clock = SimulatedClock()
    sizes = sizes_of(Engine(tiny_model(model), context_length=256, sequences=2))
    first, second = SimulatedEngine(model, sizes, StepsOfTokens(), clock).drive(clock).run([session])
    assert first.due == first.sent == 1.0
    assert [round(t, 2) for t in first.arrivals] == [2.1, 3.11, 4.12]
    assert second.due == first.end + 4.0
    assert (second.prompt, second.tokens) == (15, 2)


def test_blocks_have_their_own_tokens() -> None:
    assert block_tokens("a", 50, 997) == block_tokens("a", 50, 997) != block_tokens("b", 50, 997)
    assert min(block_tokens("a", 5000, 997)) == 64
    assert max(block_tokens("a", 5000, 997)) == 996
