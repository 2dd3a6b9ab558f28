"""The time of a step from arithmetic: operations, bytes of memory, bytes between devices, and fixed times.

The engine's devices share its attention and dense weights (tensor parallelism); the devices of an expert group share
the routed experts. A step takes as long as the slowest of computing, reading memory and sending tokens to experts
(the report's waves of experts hide the sending behind the computing), and then what does not overlap.
"""

from dataclasses import dataclass

from dsv4.config import ModelConfig
from dsv4.model.accounting import BF16_COST, entry_bytes, flops_per_token, index_bytes, keys_read, parameters
from dsv4.simulate.hardware import Accelerator
from dsv4.simulate.shape import StepShape, touched_experts

# bytes of a token that is sent to one expert and back: FP8 there, BF16 back (report, expert parallelism)
PAIR_BYTES_PER_WIDTH = 3


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What a datasheet does not say.

    compute, memory, links: shares of the peaks that are reached. layer_seconds: fixed time of a layer in a step, for
    launches and waits. step_seconds: of scheduling and sampling. sync_seconds: latency of one exchange between devices;
    there are two in a layer for tensor parallelism, and two for experts.
    """

    compute: float = 0.5
    memory: float = 0.7
    links: float = 0.7
    layer_seconds: float = 25e-6
    step_seconds: float = 500e-6
    sync_seconds: float = 10e-6

    def __post_init__(self) -> None:
        for name in ("compute", "memory", "links"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {getattr(self, name):g}")


@dataclass(frozen=True, slots=True)
class ClusterLayout:
    """tensor: devices of one engine. expert: devices that share the experts, a multiple of `tensor`. dense, experts:
    bytes of the weights of the whole model, without and with only the routed experts."""

    device: Accelerator
    tensor: int
    expert: int
    dense: float
    experts: float

    @property
    def engines(self) -> int:
        """Engines that share one set of experts."""
        return self.expert // self.tensor

    @property
    def weights_per_device(self) -> float:
        """Bytes."""
        return self.dense / self.tensor + self.experts / self.expert


@dataclass(frozen=True, slots=True)
class Roofline:
    """Implements StepDurations. busy: mean share of the engines of an expert group that compute while one does."""

    config: ModelConfig
    layout: ClusterLayout
    assumed: Assumptions = Assumptions()
    busy: float = 1.0

    def seconds(self, step: StepShape) -> float:
        """Of one step of one engine."""
        a, layers = self.assumed, self.config.num_hidden_layers
        syncs = (2 if self.layout.tensor > 1 else 0) + (2 if self.layout.expert > 1 else 0)
        fixed = a.step_seconds + layers * (a.layer_seconds + syncs * a.sync_seconds)
        return fixed + max(self.computing(step), self.reading(step), self.sending(step)) + self.reducing(step)

    def computing(self, step: StepShape) -> float:
        """Operations of all tokens, and of the head for the rows of logits."""
        head = 2 * BF16_COST * parameters(self.config).head
        operations = head * step.rows
        for part in step.parts:
            operations += part.count * (flops_per_token(self.config, part.middle).total - head)
        return operations / (self.layout.device.fp8 * self.assumed.compute * self.layout.tensor)

    def reading(self, step: StepShape) -> float:
        """Dense weights once, the experts that are used once, and the cached rows of every token. There is one
        key-value head, so each device of an engine has them whole. A chunk of a prompt reads the indexer's keys
        once."""
        config, layout = self.config, self.layout
        entry, index = entry_bytes(config), index_bytes(config)
        used = touched_experts(config.n_routed_experts, config.num_experts_per_tok, self._group_tokens(step))
        size = layout.dense / layout.tensor + layout.experts / layout.expert * used / config.n_routed_experts
        for part in step.parts:
            entries, indexed = keys_read(config, part.middle)
            size += part.count * entries * entry + indexed * index
        return size / (layout.device.bandwidth * self.assumed.memory)

    def sending(self, step: StepShape) -> float:
        """Tokens to experts on other devices, and back."""
        config, layout = self.config, self.layout
        if layout.expert == 1:
            return 0.0
        pairs = step.tokens * config.num_experts_per_tok * config.num_hidden_layers
        size = pairs * PAIR_BYTES_PER_WIDTH * config.hidden_size / layout.tensor
        inside = min(layout.device.devices, layout.expert)
        near, far = (inside - 1) / layout.expert, (layout.expert - inside) / layout.expert
        reached = self.assumed.links
        return size * max(near / (layout.device.link * reached), far / (layout.device.network * reached))

    def reducing(self, step: StepShape) -> float:
        """Sums of the engine's devices, two in a layer, of BF16 vectors; they are not hidden."""
        layout = self.layout
        if layout.tensor == 1:
            return 0.0
        size = 2 * self.config.num_hidden_layers * step.tokens * self.config.hidden_size * 2
        rate = layout.device.link if layout.tensor <= layout.device.devices else layout.device.network
        return 2 * (layout.tensor - 1) / layout.tensor * size / (rate * self.assumed.links)

    def _group_tokens(self, step: StepShape) -> int:
        """Tokens of all engines that share the experts: they step together."""
        return max(step.tokens, round(step.tokens * self.layout.engines * self.busy))
