"""Training against the released numbers where several ranks share a matrix (see `dsv4.training.qat`).

A matrix is cast before it is gathered: each rank casts the rows it holds, in the blocks of the whole matrix, so what
is gathered has the bits that one process would have.
"""

from dataclasses import replace

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dsv4.checkpoint.names import RELEASE, Layout, stored
from dsv4.distributed import fsdp
from dsv4.distributed.gradients import local
from dsv4.kernels import quant
from dsv4.parameters import Parameter
from dsv4.training.qat import FakeQuantised, released_value


class ShardsFakeQuantised(FakeQuantised):
    """`FakeQuantised` of a model that `fsdp.shard` has cut. Ranks that share matrices must enter together."""

    def released(self, rule: Parameter, value: Tensor) -> Tensor:
        if isinstance(value, DTensor):
            return released_shard(rule, value, self.layout)
        return super().released(rule, value)

    def kept(self, p: nn.Parameter) -> Tensor:
        return local(p).clone() if isinstance(p, DTensor) else super().kept(p)

    def put(self, p: nn.Parameter, value: Tensor) -> None:
        if isinstance(p, DTensor):
            local(p).copy_(value)  # in place: FSDP gathers from this memory
        else:
            super().put(p, value)

    def _put(self, values: list[Tensor]) -> None:
        super()._put(values)
        fsdp.release(self.model)


def released_shard(parameter: Parameter, value: DTensor, layout: Layout = RELEASE) -> Tensor:
    """The rows of `released_value` that this rank holds of a cut matrix; all ranks that share it must call together.

    The matrix is gathered only where a block of rows with one scale lies on two ranks.
    """
    rows, (first, last) = value.shape[0], fsdp.own_rows(value)
    shared = len(stored(parameter, layout)) == 2  # elements without a scale are cast one by one
    each = fsdp.shard_rows(rows, value.device_mesh.size())[0]
    begin, end, held = first, last, local(value)
    if shared and each % quant.FP8_BLOCK and each < rows:
        begin, end = first // quant.FP8_BLOCK * quant.FP8_BLOCK, min(rows, _up(last, quant.FP8_BLOCK))
        held = value.full_tensor()[begin:end]
    if first == last:
        return local(value)
    cast = released_value(replace(parameter, shape=tuple(held.shape)), held, layout)
    return cast[first - begin : last - begin]


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
