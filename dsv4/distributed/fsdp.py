"""Dense weights cut along their rows over the fsdp ranks, gathered block by block when they are needed (FSDP2).

Cut are matrices. Vectors - norms, sinks, biases, the scales of the hyper-connections with 1 to 3 numbers - and the
collapse before the head stay whole on every rank: together they are under a thousandth of the weights. Routed experts
are not cut either: the expert axis splits them.
"""

from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from dsv4.distributed.mesh import Mesh
from dsv4.distributed.transformer import RankTransformer
from dsv4.model.attention.csa import CompressedSparseAttention
from dsv4.model.mtp import MultiTokenPredictor
from dsv4.model.transformer import Transformer
from dsv4.parameters import Role, parameter_table


def shard(model: RankTransformer, mesh: Mesh) -> None:
    """Cut the model's matrices in place; nothing happens where the mesh has one fsdp rank.

    Gradients arrive cut and added up over the fsdp ranks, not averaged.
    """
    if mesh.scale.fsdp == 1:
        return
    whole = {p for name, p in model.named_parameters() if stays_whole(name, p, model)}

    def unit(module: nn.Module, free: bool | None = None) -> None:
        fully_shard(module, mesh=mesh.devices["fsdp"], ignored_params=whole, reshard_after_forward=free)

    for block in model.blocks:
        if isinstance(block.attn, CompressedSparseAttention):
            # the indexer's loss leaves the block beside its output, and in the warm-up nothing else has a gradient
            # kept until the backward pass: whether a rank computes queries depends on the length of its documents
            unit(block.attn.indexer, free=False)
            for method in ("queries", "remember"):
                register_fsdp_forward_method(block.attn.indexer, method)
        if isinstance(block, MultiTokenPredictor):
            # used before the block's forward pass begins
            unit(block.e_proj)
            unit(block.h_proj)
        unit(block)
    for module in (model.embed, model.head, model):
        unit(module)
    for method in ("hidden", "mtp_hidden"):
        register_fsdp_forward_method(model, method)
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)


def stays_whole(name: str, p: nn.Parameter, model: Transformer) -> bool:
    """Whether every rank holds all of a parameter of `model` (routed experts: every rank that has the expert)."""
    role = parameter_table(model.config)[name].role
    if p.dim() != 2 or role in (Role.EXPERT, Role.HEAD_CONNECTION):
        return True
    # one message gathers a block, so its cut weights share a dtype: under bf16 compressors and routers stay whole
    return role not in (Role.EMBEDDING, Role.HEAD) and p.dtype != model.numerics.activations


def release(model: nn.Module) -> None:
    """Free gathered weights that are still held, so that the next pass gathers the shards again."""
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def own_rows(p: DTensor) -> tuple[int, int]:
    """The rows of a cut matrix that this rank holds: from the first number up to the second, itself not among them."""
    parts, here = shard_rows(p.shape[0], p.device_mesh.size()), p.device_mesh.get_local_rank()
    first = sum(parts[:here])
    return first, first + parts[here]


def shard_rows(rows: int, ranks: int) -> list[int]:
    """How many rows each rank holds of a matrix with `rows`: equal parts, the last ones shorter or empty."""
    most = -(-rows // ranks)
    return [max(0, min(most, rows - rank * most)) for rank in range(ranks)]
