"""The flags of the engine, shared by the commands that run one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dsv4.config import Mode


@dataclass(frozen=True, slots=True)
class EngineFlags:
    """Memory, numerics and scheduling of the engine.

    Parameters
    ----------
    mode
        Numerics: fp32 (exact), bf16, or release (quantised as released).
    context
        Largest prompt plus answer in tokens. Default: the smaller of the model's and 131,072.
    memory
        Budget of the cache: a size (8GiB) or a share of free memory (50%).
    expert_memory
        Memory of the routed experts: a size (20GiB) or a share of free memory. The other experts are read from the
        checkpoint when they are chosen. Needs --mode release. Default: no limit.
    sequences
        Requests that run at the same time.
    cache_dtype
        Storage of cached rows: fp32, bf16, or release (584 bytes an entry). Default: that of the mode.
    queue
        Waiting requests; further ones are refused as busy.
    windows
        Windows of finished prefixes that are kept: periodic, full (no recomputation), or none.
    interval
        With periodic: tokens between two kept prefixes of a prompt.
    snapshots
        Largest number of finished prefixes in memory; 0 turns reuse off.
    prefix_dir
        Folder that keeps prefixes after the process ends. Default: memory only.
    prefix_disk
        Largest size of that folder.
    dialect
        Dialect of the prompts: v4, v4-0731 or v4.1. Default: the folder's own.
    speculate
        Let the model's draft head (DSpark) draft up to its block of tokens in each step, or its prediction block one;
        the text does not change.
    fused
        Run each step as one native call; --no-fused runs it op by op, with the same bits. Default: fused where
        possible.
    adapter
        Folder of a LoRA adapter to use on top of the model (`dsv4 sft --lora` makes one).
    """

    mode: Mode = "fp32"
    context: int | None = None
    memory: str = "50%"
    expert_memory: str | None = None
    sequences: int = 8
    cache_dtype: Mode | None = None
    queue: int = 1024
    windows: Literal["periodic", "full", "none"] = "periodic"
    interval: int = 4096
    snapshots: int = 32
    prefix_dir: Path | None = None
    prefix_disk: str = "8GiB"
    dialect: str | None = None
    speculate: bool = False
    fused: bool | None = None
    adapter: Path | None = None

    def options(self) -> dict[str, Any]:
        """The arguments of dsv4.api.loading.load. Raises ValueError for a flag outside its range, before the model is
        loaded."""
        from dsv4.cache.prefix import ReusePolicy
        from dsv4.cli.flags import at_least
        from dsv4.encoding import dialect_named
        from dsv4.engine.memory import check_budget

        if self.dialect is not None:
            dialect_named(self.dialect)
        at_least(1, context=self.context, sequences=self.sequences, queue=self.queue)
        memory = _size("--memory", self.memory)
        check_budget("--memory", memory)
        return {
            "mode": self.mode,
            "context_length": self.context,
            "memory": memory,
            "expert_memory": None if self.expert_memory is None else _size("--expert-memory", self.expert_memory),
            "sequences": self.sequences,
            "cache_dtype": self.cache_dtype,
            "queue": self.queue,
            "reuse": ReusePolicy(self.windows, self.interval, self.snapshots),
            "prefix_folder": self.prefix_dir,
            "prefix_bytes": _size("--prefix-disk", self.prefix_disk),
            "dialect": self.dialect,
            "speculate": self.speculate,
            "fused": self.fused,
            "adapter": self.adapter,
        }


def _size(flag: str, text: str) -> int:
    from dsv4.engine.memory import parse_memory

    try:
        return parse_memory(text)
    except ValueError as error:
        raise ValueError(f"{flag}{str(error).removeprefix('memory')}") from None
