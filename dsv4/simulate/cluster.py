"""A number of nodes as engines and expert groups: what fits, and what one engine's share of a load comes to for all."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dsv4.cache import CacheSpec
from dsv4.cache.prefix import ReusePolicy
from dsv4.config import ModelConfig
from dsv4.files import size_text
from dsv4.planning.cache_budget import plan_cache
from dsv4.planning.files import ModelFiles
from dsv4.planning.weights import weight_bytes
from dsv4.simulate.drive import SimulatedClock
from dsv4.simulate.engine import EngineSizes, SimulatedEngine
from dsv4.simulate.hardware import Accelerator
from dsv4.simulate.roofline import Assumptions, ClusterLayout, Roofline
from dsv4.workload.kinds import Workload, poisson
from dsv4.workload.timing import ServiceLimits, TimingSummary, summarise
from dsv4.workload.trace import Session, longest

USABLE = 0.9  # of a device's memory; the rest is for buffers of steps
CACHE_SHARE = 0.1  # of a device's memory that must be left for the cache
MILLION = 10**6
SESSIONS_PER_USER = 2  # at least, so that the load lasts after its beginning


@dataclass(frozen=True, slots=True)
class Offered:
    """The load of the whole cluster: users at a time, or sessions a second, or a trace at its own times. requests: of
    one simulated engine; more where each user needs them for two sessions."""

    workload: Workload
    trace: tuple[Session, ...] = ()
    users: int | None = None
    rate: float | None = None
    requests: int = 64
    limits: ServiceLimits = ServiceLimits()  # noqa: RUF009 (frozen)
    seed: int = 0

    def share(self, engines: int) -> "tuple[list[Session], int | None, float]":
        """The sessions of one of so many engines, its users, and how many engines like it the load keeps busy."""
        each = None if self.users is None else max(1, round(self.users / engines))
        if self.trace:
            sessions = [*self.trace[::engines]]
        else:
            count = max(-(-self.requests // self.workload.session_length), SESSIONS_PER_USER * (each or 0))
            sessions = self.workload.sessions(count, "s", self.seed)
        if each is not None and self.users is not None:
            return sessions, each, self.users / each
        if self.rate is not None:
            sessions = poisson(sessions, self.rate / engines, self.seed)
        return sessions, None, float(min(engines, len(self.trace)) if self.trace else engines)


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a cluster does with a load. summary: of one engine; scale: engines like it. Sizes in bytes, of a device."""

    model: str
    device: str
    nodes: int
    devices: int
    layout: ClusterLayout
    summary: TimingSummary
    scale: float
    weights: float
    cache: float
    sequences: int
    preempted: int
    steps: int

    @property
    def output_rate(self) -> float:
        """Tokens of answers a second, of all nodes."""
        return self.summary.output_rate * self.scale

    @property
    def total_rate(self) -> float:
        """Tokens of prompts and answers a second, of all nodes; cached ones count."""
        return self.summary.total_rate * self.scale

    @property
    def device_hours(self) -> float:
        """Of all devices, for a million tokens of answers with their prompts."""
        return self.devices * MILLION / self.output_rate / 3600 if self.output_rate else float("inf")

    @property
    def cost(self) -> float | None:
        """US dollars for a million tokens of answers with their prompts; None without a price."""
        price = self.layout.device.price
        return None if price is None else price * self.device_hours

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = ("output_rate", "total_rate", "device_hours", "cost")
        kept = {name: getattr(self, name) for name in ("model", "nodes", "devices", "scale", "weights", "cache")}
        more = {name: getattr(self, name) for name in ("sequences", "preempted", "steps", *names)}
        shape = {"device": asdict(self.layout.device), "tensor": self.layout.tensor, "expert": self.layout.expert}
        return {**kept, **shape, **more, "engine": self.summary.to_dict()}


def lay_out(
    files: ModelFiles, device: Accelerator, nodes: int, tensor: int | None = None, expert: int | None = None
) -> ClusterLayout:
    """How the weights lie. tensor, expert: as in ClusterLayout; by default engines of one device, and groups of the
    fewest whole nodes that hold the experts beside a tenth for the cache. Raises ValueError for what does not fit."""
    total = nodes * device.devices
    held = weight_bytes(files, "release", predict=False).copied()
    tensor = tensor or 1
    room = (USABLE - CACHE_SHARE) * device.memory

    def layout(count: int) -> ClusterLayout:
        return ClusterLayout(device, tensor, count, held.made, held.experts_made)

    counts = [expert] if expert else [device.devices * n for n in range(1, nodes + 1) if nodes % n == 0]
    for count in counts:
        if count % tensor or total % count:
            raise ValueError(
                f"expert must be a multiple of the {tensor} devices of an engine that divides the {total} devices, "
                f"got {count}"
            )
        if layout(count).weights_per_device <= room:
            return layout(count)
    needed = layout(counts[-1]).weights_per_device
    raise ValueError(
        f"nodes must be more than {nodes}: a {device.name} has room for {size_text(int(room))} of weights beside its "
        f"cache, {files.name} needs {size_text(int(needed))} on each of {counts[-1]} devices"
    )


@dataclass(frozen=True, slots=True)
class EngineWishes:
    """Sizes of an engine that the caller wants; the cache decides how many sequences fit. slowdown: as in Engine."""

    context: int = 131_072
    sequences: int = 64
    step_tokens: int = 4096
    snapshots: int = 64
    slowdown: float | None = None


def simulate(
    files: ModelFiles, layout: ClusterLayout, nodes: int, offered: Offered, wishes: EngineWishes, assumed: Assumptions
) -> Capacity:
    """Run one engine's share of the load. Raises ValueError where cache or context are too small for it."""
    config, device = files.config, layout.device
    devices = nodes * device.devices
    engines = devices // layout.tensor
    sessions, users, scale = offered.share(engines)
    context = _context(config, sessions, wishes.context)
    budget = int(USABLE * device.memory - layout.weights_per_device)
    cache = plan_cache(
        CacheSpec(config, "release"),
        budget,
        context_length=context,
        sequences=wishes.sequences,
        snapshots=wishes.snapshots,
    )
    sizes = EngineSizes(
        context,
        cache.tokens,
        cache.sequences,
        wishes.step_tokens,
        "release",
        ReusePolicy(snapshots=cache.snapshots),
        wishes.slowdown,
    )
    clock = SimulatedClock()
    times = Roofline(config, layout, assumed, min(1.0, scale / engines))
    engine = SimulatedEngine(config, sizes, times, clock)
    timings = engine.drive(clock, users=users).run(sessions)
    return Capacity(
        files.name,
        device.name,
        nodes,
        devices,
        layout,
        summarise(timings, offered.limits),
        scale,
        layout.weights_per_device,
        cache.bytes,
        cache.sequences,
        engine.counts.preempted,
        engine.counts.steps,
    )


def _context(config: ModelConfig, sessions: Sequence[Session], wanted: int) -> int:
    """The context that the requests need. Raises ValueError if that is more than wanted."""
    needed = longest([request for session in sessions for request in session])
    most = min(wanted, config.max_position_embeddings)
    if needed > most:
        raise ValueError(f"context must be at least the {needed:,} tokens of the longest request, got {most:,}")
    return most
