"""An engine without a model: the real scheduler, cache manager and prefix reuse over a cache without memory."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from dsv4.cache import CacheStore
from dsv4.cache.manager import CacheManager
from dsv4.cache.prefix import ReusePolicy
from dsv4.config import Mode, ModelConfig
from dsv4.engine.batching import ContinuousBatching, Emitted
from dsv4.simulate.drive import Drive, SimulatedClock
from dsv4.simulate.runner import Scripted, SimulatedRunner, StepDurations

QUEUE = 10**9  # a trace is never refused


@dataclass(frozen=True, slots=True)
class EngineSizes:
    """As the arguments of Engine."""

    context_length: int
    cache_tokens: int
    sequences: int
    step_tokens: int
    cache_dtype: Mode
    reuse: ReusePolicy
    slowdown: float | None = None


class SimulatedEngine(ContinuousBatching):
    """Continuous batching whose steps take what `times` says, on `clock`."""

    def __init__(self, config: ModelConfig, sizes: EngineSizes, times: StepDurations, clock: SimulatedClock) -> None:
        # tensors on the meta device have shapes and no memory: copies of pages and slots do nothing
        store = CacheStore(
            config,
            sizes.cache_dtype,
            tokens=sizes.cache_tokens,
            slots=sizes.sequences + sizes.reuse.snapshots,
            device="meta",
        )
        super().__init__(
            config,
            CacheManager(store, sizes.reuse),
            SimulatedRunner(times, clock),
            context_length=sizes.context_length,
            sequences=sizes.sequences,
            step_tokens=sizes.step_tokens,
            queue=QUEUE,
            sampled_vocabulary=None,
            observer=None,
            clock=lambda: clock.now,
            slowdown=sizes.slowdown,
        )
        self.ends = frozenset()  # answers have the length of the trace

    def drive(self, clock: SimulatedClock, **options: Any) -> Drive:
        """What runs a trace on it. clock: the same as at its construction. options: of Drive."""
        return Drive(self, clock, partial(self._counted, clock), Scripted(self.config.vocab_size), **options)

    def _counted(self, clock: SimulatedClock) -> list[Emitted]:
        """One step. A step without work would leave the clock where it is for ever."""
        before = self.counts.steps
        events = self.step()
        assert self.counts.steps > before or events or not self.busy, "nothing can be done"
        return events
