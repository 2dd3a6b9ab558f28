"""What every parameter of the model is: the one table that loading, export, training and arithmetic look up.

A parameter's name and shape follow from the configuration; so do its role, how it may be stored, which optimiser moves
it and which matrices lie in it. Parameter names of our modules are the released names.

Two choices that the report leaves open (2.4). Position biases (`ape`) are added to scores, one number per place and
channel: they are not linear maps, so their singular values have no meaning, and AdamW moves them with the other biases.
Decay follows the remark in the V4.1 report: norm weights are decayed, biases and scales are not.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType

from dsv4.config import AttentionKind, LayerSpec, ModelConfig, Routing


class Role(StrEnum):
    """The part of the model a parameter belongs to."""

    EMBEDDING = "embedding"
    HEAD = "head"
    ATTENTION = "attention"  # queries, window keys, output, sinks
    COMPRESSOR = "compressor"
    INDEXER = "indexer"  # its compressor included
    ROUTER = "router"
    EXPERT = "expert"  # routed
    SHARED_EXPERT = "shared expert"
    HYPER_CONNECTION = "hyper-connection"
    HEAD_CONNECTION = "head connection"  # the hyper-connection before the head
    NORM = "norm"
    PREDICTION = "prediction"  # projections into the prediction block, or into the draft head
    DRAFT = "draft"  # the draft head's bias by the token before, and its confidence


class Storage(StrEnum):
    """How a parameter may be stored, and in which dtype it computes."""

    LINEAR = "linear"  # FP8 in the quantised layouts, bfloat16 where its tiles would be read in two ways
    EXPERT = "expert"  # a routed expert's linear: FP4 or FP8 (or bfloat16, as above)
    PLAIN = "plain"  # matrices never quantised: embedding, indexer weights
    WIDE = "wide"  # stored in bfloat16, computes in float32: router, compressor, head, the draft head's own
    NORM = "norm"  # stored in bfloat16, computes in float32
    FLOAT = "float"  # always float32: hyper-connections, sinks, position biases, router bias
    TABLE = "table"  # int64: hash routing


class Mover(StrEnum):
    """What changes a parameter in training (report 2.4)."""

    MUON = "Muon"
    ADAMW = "AdamW"
    BALANCE = "balance"  # router biases: the balancing rule, no gradient
    NOTHING = "nothing"  # tables


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter with its logical (unpacked) shape.

    rows: heights of the logically independent matrices stored in it, for Muon; () = it is one. indexer: it belongs to
    an indexer (its norms too, whose role is NORM). float_inputs: a stored linear whose inputs the release keeps in
    bfloat16.
    """

    name: str
    role: Role
    storage: Storage
    shape: tuple[int, ...]
    mover: Mover = Mover.MUON
    decay: bool = True
    rows: tuple[int, ...] = ()
    indexer: bool = False
    float_inputs: bool = False

    @property
    def scale_name(self) -> str:
        """Where the block scales of a quantised weight are stored."""
        return scale_of(self.name)

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def matrices(self) -> int:
        """How many logically independent matrices it holds."""
        return len(self.rows) or 1

    @property
    def prediction(self) -> bool:
        """Whether it belongs to the multi-token-prediction block or to the draft head."""
        return self.name.startswith("mtp.")


def scale_of(weight_name: str) -> str:
    """`x.weight` -> `x.scale`."""
    return weight_name.removesuffix("weight") + "scale"


def weight_of(scale_name: str) -> str:
    """`x.scale` -> `x.weight`."""
    return scale_name.removesuffix("scale") + "weight"


def is_expert(name: str) -> bool:
    """Whether a name is that of a routed expert's parameter or scale; for code that has no configuration."""
    return ".ffn.experts." in name


@lru_cache(maxsize=16)
def parameter_table(config: ModelConfig) -> Mapping[str, Parameter]:
    """Every parameter of the model by name, in released order."""
    return MappingProxyType({parameter.name: parameter for parameter in parameters(config)})


def parameters(config: ModelConfig) -> Iterator[Parameter]:
    """Every parameter of the model in released order."""
    D, V = config.hidden_size, config.vocab_size
    yield Parameter("embed.weight", Role.EMBEDDING, Storage.PLAIN, (V, D), Mover.ADAMW)
    yield Parameter("head.weight", Role.HEAD, Storage.WIDE, (V, D), Mover.ADAMW)
    yield _norm("norm.weight", D)
    yield from _head_connection("", config)
    for layer in config.layers:
        yield from _block(f"layers.{layer.index}.", layer, config)
    for i, layer in enumerate(config.mtp_layers):
        prefix = f"mtp.{i}."
        yield from _block(prefix, layer, config)
        for name in ("e_proj", "h_proj"):
            yield Parameter(f"{prefix}{name}.weight", Role.PREDICTION, Storage.LINEAR, (D, D))
        for name in ("enorm", "hnorm", "norm"):
            yield _norm(f"{prefix}{name}.weight", D)
        yield from _head_connection(prefix, config)
    yield from _draft_head(config)


def _draft_head(config: ModelConfig) -> Iterator[Parameter]:
    """The stages of DSpark under the released names: the first has the way in, the last the way out."""
    if config.dspark is None:
        return
    D, V, r = config.hidden_size, config.vocab_size, config.dspark.markov_rank
    *_, last = config.draft_layers
    for i, layer in enumerate(config.draft_layers):
        prefix = f"mtp.{i}."
        yield from _block(prefix, layer, config)
        if i == 0:
            shape = (D, len(config.dspark.target_layer_ids) * D)
            yield Parameter(f"{prefix}main_proj.weight", Role.PREDICTION, Storage.LINEAR, shape)
            yield _norm(f"{prefix}main_norm.weight", D)
        if layer == last:
            yield _norm(f"{prefix}norm.weight", D)
            yield from _head_connection(prefix, config)
            for name in ("markov_w1", "markov_w2"):  # an embedding and a head of few columns
                name = f"{prefix}markov_head.{name}.weight"
                yield Parameter(name, Role.DRAFT, Storage.WIDE, (V, r), Mover.ADAMW)
            name = f"{prefix}confidence_head.proj.weight"
            yield Parameter(name, Role.DRAFT, Storage.WIDE, (1, D + r), Mover.ADAMW)


def _norm(name: str, size: int, indexer: bool = False) -> Parameter:
    return Parameter(name, Role.NORM, Storage.NORM, (size,), Mover.ADAMW, indexer=indexer)


def _bias(
    name: str, role: Role, shape: tuple[int, ...], mover: Mover = Mover.ADAMW, indexer: bool = False
) -> Parameter:
    return Parameter(name, role, Storage.FLOAT, shape, mover, decay=False, indexer=indexer)


def _head_connection(prefix: str, config: ModelConfig) -> Iterator[Parameter]:
    copies = config.hc_mult
    role = Role.HEAD_CONNECTION
    yield Parameter(f"{prefix}hc_head_fn", role, Storage.FLOAT, (copies, copies * config.hidden_size))
    yield _bias(f"{prefix}hc_head_base", role, (copies,))
    yield _bias(f"{prefix}hc_head_scale", role, (1,))


def _block(prefix: str, layer: LayerSpec, config: ModelConfig) -> Iterator[Parameter]:
    yield from _attention(f"{prefix}attn.", layer, config)
    yield from _ffn(f"{prefix}ffn.", layer, config)
    yield _norm(f"{prefix}attn_norm.weight", config.hidden_size)
    yield _norm(f"{prefix}ffn_norm.weight", config.hidden_size)
    copies, role = config.hc_mult, Role.HYPER_CONNECTION
    maps = (copies, copies, copies * copies)  # pre, post, and the copies x copies combination (eqs 3-5)
    for part in ("attn", "ffn"):
        shape = (sum(maps), copies * config.hidden_size)
        yield Parameter(f"{prefix}hc_{part}_fn", role, Storage.FLOAT, shape, rows=maps)
        yield _bias(f"{prefix}hc_{part}_base", role, (sum(maps),))
        yield _bias(f"{prefix}hc_{part}_scale", role, (3,))


def _attention(prefix: str, layer: LayerSpec, config: ModelConfig) -> Iterator[Parameter]:
    D, H, C, Q = config.hidden_size, config.num_attention_heads, config.head_dim, config.q_lora_rank
    groups, rank, role, linear = config.o_groups, config.o_lora_rank, Role.ATTENTION, Storage.LINEAR
    yield _bias(f"{prefix}attn_sink", role, (H,))
    yield Parameter(f"{prefix}wq_a.weight", role, linear, (Q, D))
    yield _norm(f"{prefix}q_norm.weight", Q)
    # one matrix: V4.1 calls splitting it by heads a change
    yield Parameter(f"{prefix}wq_b.weight", role, linear, (H * C, Q))
    yield Parameter(f"{prefix}wkv.weight", role, linear, (C, D))
    yield _norm(f"{prefix}kv_norm.weight", C)
    rows = (rank,) * groups if groups > 1 else ()
    yield Parameter(
        f"{prefix}wo_a.weight", role, linear, (groups * rank, H * C // groups), rows=rows, float_inputs=True
    )
    yield Parameter(f"{prefix}wo_b.weight", role, linear, (D, groups * rank))
    if layer.ratio:
        yield from _compressor(f"{prefix}compressor.", layer, C, D)
    if layer.kind is AttentionKind.CSA:
        heads, dim, role = config.index_n_heads, config.index_head_dim, Role.INDEXER
        yield from _compressor(f"{prefix}indexer.compressor.", layer, dim, D, indexer=True)
        yield Parameter(f"{prefix}indexer.wq_b.weight", role, linear, (heads * dim, Q), indexer=True)
        yield Parameter(f"{prefix}indexer.weights_proj.weight", role, Storage.PLAIN, (heads, D), indexer=True)


def _compressor(prefix: str, layer: LayerSpec, dim: int, D: int, indexer: bool = False) -> Iterator[Parameter]:
    role, width = Role.INDEXER if indexer else Role.COMPRESSOR, layer.width(dim)
    # with overlap one map for the block itself and one for the next (eqs 9-10)
    rows = (dim, dim) if layer.overlap else ()
    yield _bias(f"{prefix}ape", role, (layer.ratio, width), indexer=indexer)
    yield Parameter(f"{prefix}wkv.weight", role, Storage.WIDE, (width, D), rows=rows, indexer=indexer)
    yield Parameter(f"{prefix}wgate.weight", role, Storage.WIDE, (width, D), rows=rows, indexer=indexer)
    yield _norm(f"{prefix}norm.weight", dim, indexer)


def _ffn(prefix: str, layer: LayerSpec, config: ModelConfig) -> Iterator[Parameter]:
    D, F, E = config.hidden_size, config.moe_intermediate_size, config.n_routed_experts
    yield Parameter(f"{prefix}gate.weight", Role.ROUTER, Storage.WIDE, (E, D))
    if layer.routing is Routing.HASH:
        shape = (config.vocab_size, config.num_experts_per_tok)
        yield Parameter(f"{prefix}gate.tid2eid", Role.ROUTER, Storage.TABLE, shape, Mover.NOTHING, decay=False)
    else:
        yield _bias(f"{prefix}gate.bias", Role.ROUTER, (E,), Mover.BALANCE)
    shapes = {"w1": (F, D), "w2": (D, F), "w3": (F, D)}
    for e in range(E):
        for name, shape in shapes.items():
            yield Parameter(f"{prefix}experts.{e}.{name}.weight", Role.EXPERT, Storage.EXPERT, shape)
    for name, shape in shapes.items():
        yield Parameter(f"{prefix}shared_experts.{name}.weight", Role.SHARED_EXPERT, Storage.LINEAR, shape)
