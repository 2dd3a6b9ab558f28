"""New weights for an engine in this process: the `WeightSink` of a trainer in the same process."""

import asyncio
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from dsv4.engine.service import EngineService
from dsv4.model.transformer import Transformer

Put = Callable[[Transformer, Mapping[str, Tensor]], None]


class EngineWeights:
    """Puts weights into a running service's model, between two steps. The events of its tokens then have the version.

    put: writes the weights; default: by name, rounded to the dtypes of the model. wait: running requests finish with
    the old weights first, and new requests wait; otherwise running requests continue with the new weights on rows that
    the old weights have cached.
    """

    def __init__(self, service: EngineService, put: Put | None = None, *, wait: bool = True) -> None:
        self._service, self._put, self._wait, self._version = service, put or copy_weights, wait, 0

    @property
    def version(self) -> int:
        """The version of the weights that sample new tokens."""
        return self._version

    async def publish(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Replace parameters by name. Returns when new tokens are sampled with them and kept prefixes of the old
        weights are dropped. Raises ValueError for a name or a shape that the model does not have, and then changes
        nothing."""
        await asyncio.wrap_future(
            self._service.update_weights(lambda model: self._put(model, weights), wait=self._wait, version=version)
        )
        self._version = version


@torch.no_grad()
def copy_weights(model: Transformer, weights: Mapping[str, Tensor]) -> None:
    """Write weights in place. Raises ValueError naming the first weight that does not fit, before it writes any."""
    own = model.state_dict()
    for name, value in weights.items():
        if name not in own:
            raise ValueError(f"weights: the model has no {name!r}")
        if own[name].shape != value.shape:
            raise ValueError(f"weights: {name} must have shape {list(own[name].shape)}, got {list(value.shape)}")
    for name, value in weights.items():
        own[name].copy_(value)
