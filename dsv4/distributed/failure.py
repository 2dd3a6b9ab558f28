"""The error of a run whose connection to another rank is lost."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

# torch names no class for what gloo raises
_SIGNS = ("gloo", "Connection closed by peer", "Connection reset by peer", "Timed out waiting", "NCCL")


class RankLost(RuntimeError):
    """Another process has died or does not answer."""


@contextmanager
def watched(rank: int, world: int, timeout: float) -> Iterator[None]:
    """Turn errors of the connection to other ranks into RankLost, whose message says what to do; others pass.

    A rank that dies closes its connections, and the others notice at once. A rank that hangs is given up after
    `timeout` seconds.
    """
    try:
        yield
    except RankLost:
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(sign in str(error) for sign in _SIGNS):
            raise
        raise RankLost(
            f"rank {rank} of {world}: another rank has died, or did not answer for {timeout:g} s (scale.timeout). Look "
            f"for the first error among the ranks; the same command goes on from the last checkpoint"
        ) from error
