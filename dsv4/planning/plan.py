"""The plan of a model on a machine: numerics, what stays in memory, what is read from disk. Arithmetic only.

`make_plan` decides what the caller has left open. What does not fit is read from the files as it is needed; what cannot
be given back and does not fit either is refused, with the flag that helps.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from dsv4.cache import CacheDtype, CacheSpec
from dsv4.checkpoint import check_shapes
from dsv4.config import Mode, ModeChoice
from dsv4.config.drafts import MOST_CHECKED
from dsv4.files import size_text
from dsv4.kernels import native
from dsv4.planning.cache_budget import CachePlan, plan_cache
from dsv4.planning.files import ModelFiles
from dsv4.planning.memory import ALL, free_memory, limited
from dsv4.planning.numerics import choose_mode
from dsv4.planning.weights import WeightBytes, weight_bytes
from dsv4.planning.workspace import TENSOR_BYTES, workspace_bytes

DEFAULT_CONTEXT = 131_072
USABLE = 0.95  # share of free memory that a plan uses
CACHE_SHARE = 0.5  # of free memory, where all weights fit beside it
STREAMED_CACHE_SHARE = 0.125  # of free memory, where the experts need the rest
CONTEXTS = (65_536, 32_768, 8_192, 2_048)  # that a refusal suggests
FEW_SEQUENCES, FEW_TOKENS = 8, 512  # the same, of a server
CARD_WORK = 4  # plain torch keeps more between operations than a native step: a guess from above, not measured
ON_CARD = "expert_memory: native kernels read experts from disk, and they run on the CPU; leave it out on a card"
UNSUITED = "expert_memory needs mode 'release' and a checkpoint with FP4 or FP8 experts"


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What the caller wants of an engine; None is for the plan to decide.

    mode: "auto" (the numerics of the folder's weights), "fp32" (exact, for research), "bf16", or "release" (the
    released quantised numerics). context_length: largest prompt plus answer in tokens; default the smaller of the
    model's and 131,072. memory: bytes of the cache; default half of what is free, or less where the weights need it.
    expert_memory: bytes of the routed experts, "all" for no limit; default no limit where they fit beside the rest,
    else what is left, and the other experts are read from the checkpoint as they are chosen. cache_dtype: default that
    of the mode. sequences, snapshots, step_tokens, speculate, lookup: as in dsv4.engine.Engine. device: "cpu", or the
    name of a card (cuda:0), in whose memory everything lies. lookup_streamed: False turns look-up off where experts are
    read from disk.
    """

    mode: ModeChoice = "auto"
    context_length: int | None = None
    memory: int | None = None
    expert_memory: int | Literal["all"] | None = None
    sequences: int = 8
    snapshots: int = 32
    cache_dtype: CacheDtype | None = None
    step_tokens: int = 512
    speculate: bool = False
    lookup: int = 0
    device: str = "cpu"
    lookup_streamed: bool = True

    @property
    def on_card(self) -> bool:
        """Whether the model computes on a card."""
        return self.device != "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan:
    """How a model will run on this machine. Sizes in bytes.

    why: the reason for the mode. stored: of all tensors in the files. expert_memory: the limit of the routed experts,
    None = none. working: of a step, and of the objects that hold the weights. free: at the time of the plan; container:
    its limit is less than what the machine has. lookup: the most tokens of a looked-up draft, as in dsv4.engine.Engine.
    """

    model: str
    layout: str
    tensors: int
    stored: int
    mode: Mode
    why: str
    weights: WeightBytes
    expert_memory: int | None
    context: int
    cache_dtype: CacheDtype
    cache: CachePlan
    working: int
    free: int
    container: bool
    device: str = "cpu"
    lookup: int = 0

    @property
    def fixed(self) -> int:
        """What cannot be dropped and read again: converted weights, cache, buffers."""
        return self.weights.made + self.weights.experts_made + self.cache.bytes + self.working

    @property
    def experts(self) -> int:
        """All routed experts."""
        return self.weights.experts_mapped + self.weights.experts_made

    @property
    def dense_fits(self) -> bool:
        """Whether all weights but the routed experts stay in memory."""
        return self.fixed + self.weights.mapped + (self.expert_memory or 0) <= self.free

    @property
    def experts_in_memory(self) -> int:
        """Bytes of routed experts that stay in memory."""
        made, mapped = self.weights.experts_made, self.weights.experts_mapped
        room = max(0, int(USABLE * self.free) - self.fixed - self.weights.mapped)
        return made + min(mapped, room if self.expert_memory is None else self.expert_memory)

    @property
    def streamed(self) -> bool:
        """Whether experts are read from disk while the model runs."""
        return self.experts_in_memory < self.experts

    @property
    def peak(self) -> int:
        """The largest memory of the process above what it has now."""
        most = self.fixed + self.weights.mapped + self.experts_in_memory - self.weights.experts_made
        return most if self.dense_fits else max(self.fixed, min(most, int(USABLE * self.free)))

    @property
    def read_per_token(self) -> int:
        """Bytes of weights that a decoded token reads from memory."""
        return self.weights.read + self.weights.experts_read

    @property
    def disk_per_token(self) -> int:
        """Bytes of these that must be read from disk first, if all experts are chosen equally often."""
        missing = 1 - self.experts_in_memory / self.experts if self.experts else 0.0
        dense = 0 if self.dense_fits else self.weights.read
        return int(dense + missing * self.weights.experts_read)

    def to_dict(self) -> dict[str, Any]:
        """For JSON output: the fields and what follows from them."""
        names = ("fixed", "experts", "experts_in_memory", "dense_fits", "streamed", "peak")
        more = {name: getattr(self, name) for name in (*names, "read_per_token", "disk_per_token")}
        return asdict(self) | more


def make_plan(files: ModelFiles, request: EngineRequest, free: int | None = None) -> EnginePlan:
    """Decide what `request` leaves open for `free` bytes of memory (default: what the machine has; for a card, of its
    memory, which must be given). Raises ValueError with the numbers for a model that cannot run in them."""
    if request.on_card and free is None:
        raise ValueError(f"free: the memory of {request.device} must be given")
    known = free_memory() if free is None else free
    plan, needed = _plan(files, request, known, free is None and limited())
    if plan.lookup and plan.streamed and not request.lookup_streamed:
        # the rows of a step choose experts of their own, and a wrong draft reads its experts from disk for nothing
        plan, needed = _plan(files, replace(request, lookup=0), known, free is None and limited())
    if needed <= known:
        return plan
    where = f" on {plan.device}" if request.on_card else "" if free is not None else " in the machine"
    if plan.container:
        where = " under the limit of the container"
    raise ValueError(_refusal(files, request, plan, needed, where))


def _plan(files: ModelFiles, request: EngineRequest, free: int, container: bool) -> tuple[EnginePlan, int]:
    """The plan, and the bytes without which it cannot run."""
    config = files.config
    chosen, why = choose_mode(config, files.layout, files.specs)
    mode: Mode = chosen if request.mode == "auto" else request.mode
    check_shapes(config, release_numerics=mode == "release")
    most = config.max_position_embeddings
    context = min(DEFAULT_CONTEXT, most) if request.context_length is None else request.context_length
    if not (isinstance(context, int) and 1 <= context <= most):
        raise ValueError(f"context_length must be in [1, {most}], got {context!r}")
    weights = weight_bytes(files, mode, predict=request.speculate or request.on_card)
    rows = max(request.sequences, 8) * (1 + (config.taken_back if request.speculate else 0))
    rows += MOST_CHECKED if request.lookup else 0
    working = workspace_bytes(config, mode, tokens=request.step_tokens, rows=rows, context=context)
    working += TENSOR_BYTES * len(files.specs)
    if request.on_card:
        if request.expert_memory not in (None, ALL):
            raise ValueError(ON_CARD)
        weights, working = weights.copied(), CARD_WORK * working
    spec = CacheSpec(config, request.cache_dtype or mode, drafts=request.lookup)
    division = _Division(request, weights, spec, context, working, free)
    expert_memory, cache = division.shares()
    plan = EnginePlan(
        model=files.name,
        layout=files.layout.name,
        tensors=len(files.specs),
        stored=files.bytes,
        mode=mode,
        why=why if request.mode == "auto" else "as asked for",
        weights=weights,
        expert_memory=expert_memory,
        context=context,
        cache_dtype=spec.dtype,
        cache=cache,
        working=working,
        free=free,
        container=container,
        device=request.device,
        lookup=request.lookup,
    )
    if request.on_card:  # which commits memory at once, the cache's too
        return plan, plan.fixed
    return plan, division.fixed + division.least_cache + (0 if expert_memory is None else division.least_experts)


@dataclass(frozen=True, slots=True)
class _Division:
    """The division of free memory between experts and cache."""

    request: EngineRequest
    weights: WeightBytes
    spec: CacheSpec
    context: int
    working: int
    free: int

    @property
    def fixed(self) -> int:
        return self.weights.made + self.weights.experts_made + self.working

    @property
    def least_cache(self) -> int:
        return self.spec.total_bytes(self.spec.pages_for(self.context), 1)

    @property
    def least_experts(self) -> int:
        """Twice the experts of a token: one half is computed with while the other is read."""
        return 2 * self.weights.expert * self.spec.config.num_experts_per_tok

    @property
    def left(self) -> int:
        """For experts and cache."""
        return int(USABLE * self.free) - self.fixed - self.weights.mapped

    def shares(self) -> tuple[int | None, CachePlan]:
        """The limit of the experts' memory (None = no limit), and the cache. A limit that holds all experts is none:
        filling it in the order of use is slower for hundreds of tokens than reading them at once. Raises ValueError
        for a limit that the checkpoint does not allow, and for a budget of the cache below one sequence."""
        asked, mapped = self.request.expert_memory, self.weights.experts_mapped
        suited = bool(mapped) and self.weights.quantised
        if asked is not None and asked != ALL:
            self._check_limit(asked, suited)
            cache = self._cache(self.left - min(asked, mapped))
            return (None if asked >= mapped <= self.left - cache.bytes else asked), cache
        cache = self._cache(self.left - mapped)
        fits = mapped + cache.bytes <= self.left
        if asked == ALL or fits or not suited or not native.available():
            return None, cache
        cache = self._cache(int(STREAMED_CACHE_SHARE * self.free))
        room = self.left - cache.bytes
        if room < 4 * self.least_experts:  # the other weights do not fit either, and are read again for every token
            room = max(self.least_experts, int(STREAMED_CACHE_SHARE * self.free))
        return min(mapped, room), cache

    def _check_limit(self, limit: int, suited: bool) -> None:
        if not suited:
            raise ValueError(UNSUITED)
        if limit < self.least_experts:
            raise ValueError(
                f"expert_memory must be at least {self.least_experts:,} bytes (twice the experts of a token), "
                f"got {limit:,}"
            )

    def _cache(self, left: int) -> CachePlan:
        """The cache in the budget that was asked for, else in what is left, up to a share of free memory."""
        budget = self.request.memory
        if budget is None:
            budget = max(self.least_cache, min(int(CACHE_SHARE * self.free), left))
        return plan_cache(
            self.spec,
            budget,
            context_length=self.context,
            sequences=self.request.sequences,
            snapshots=self.request.snapshots,
        )


def _refusal(files: ModelFiles, request: EngineRequest, plan: EnginePlan, needed: int, where: str) -> str:
    """where: the memory is free; empty for memory that the caller has assumed."""
    weights = plan.weights.made + plan.weights.experts_made
    parts = f"weights {size_text(weights)}, working memory {size_text(plan.working)}, the rest cache and experts"
    text = (
        f"{plan.model} does not fit: mode {plan.mode} with a context of {plan.context:,} tokens needs "
        f"{size_text(needed)} of memory ({parts}), and {size_text(plan.free)} are free{where}"
    )
    for flags, other in _alternatives(request, plan):
        try:
            least = _plan(files, other, plan.free, plan.container)[1]
        except ValueError:
            continue
        if least <= plan.free:
            return f"{text}. {flags} needs at least {size_text(least)}"
    return f"{text}. No flag makes it fit"


def _alternatives(request: EngineRequest, plan: EnginePlan) -> list[tuple[str, EngineRequest]]:
    """Requests that need less, each with the flags that make it."""
    found = []
    if request.sequences > FEW_SEQUENCES:
        found.append((f"--sequences {FEW_SEQUENCES}", replace(request, sequences=FEW_SEQUENCES)))
    if request.step_tokens > FEW_TOKENS:
        found.append((f"step_tokens {FEW_TOKENS}", replace(request, step_tokens=FEW_TOKENS)))
    modes = [("", request)]
    if request.mode != "auto":
        modes.append(("--mode auto ", replace(request, mode="auto", cache_dtype=None)))
    for text, other in modes:
        if text:
            found.append((text.strip(), other))
        for context in CONTEXTS:
            if context < plan.context:
                found.append((f"{text}--context {context}", replace(other, context_length=context)))
    return found
