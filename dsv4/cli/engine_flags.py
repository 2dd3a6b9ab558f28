"""The flags of the engine, shared by the commands that run one: each is an argument of `dsv4.load` too."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from dsv4.config import DraftChoice, Mode, ModeChoice, NumaChoice

if TYPE_CHECKING:
    from dsv4.api.local_model import LocalModel
    from dsv4.planning.plan import EngineRequest

# a size: `-1GiB` is one out of range, not another flag
SizeFlag = Annotated[str | None, Parameter(allow_leading_hyphen=True)]


@dataclass(frozen=True, slots=True)
class EngineFlags:
    """Memory, numerics and scheduling of the engine.

    Parameters
    ----------
    mode
        Numerics: auto (those of the folder's weights), fp32 (exact), bf16, or release (quantised as released).
    context
        Largest prompt plus answer in tokens. Default: the smaller of the model's and 131,072.
    memory
        Budget of the cache: a size (8GiB) or a share of free memory (50%). Default: half of free memory, or less where
        the weights need it.
    expert_memory
        Memory of the routed experts: a size (20GiB), a share of free memory, or all. The other experts are read from
        the checkpoint when they are chosen. Needs quantised weights. Default: all, or what is left where they do not
        fit.
    device
        Where the model computes: cpu, cuda (a card; not run on one yet), cuda:N, or auto (a card where there is one).
    threads
        CPU threads. Default: all cores this process may use.
    numa
        On a machine with several memory nodes (NUMA): auto (default) and interleave pin threads to nodes and put
        weights on all nodes; off does neither. On one node auto does nothing, and interleave pins threads.
    sequences
        Requests that run at the same time. Default: 8 in a server, else 1.
    slowdown
        Where a prompt is computed beside answers, a step takes at most this many times as long as without the prompt;
        more than 1, or 0 for no limit, which is faster for the prompt. Default: 2 in a server, else 0.
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
    draft
        How tokens are drafted that one step then checks; the text does not change. ngram: looked up in the prompt and
        the answer so far, which is fast where text repeats, as in edits of a file. head: by the model's draft head
        (DSpark) or prediction block (MTP). both: looked up first. none. auto (default): ngram
        on a CPU with the native kernels and all experts in memory, else none.
    fused
        Run each step as one native call; --no-fused runs it op by op, with the same bits. Default: fused where
        possible.
    adapter
        Folder of a LoRA adapter to use on top of the model (`dsv4 sft --lora` makes one).
    """

    mode: ModeChoice = "auto"
    context: int | None = None
    memory: SizeFlag = None
    expert_memory: SizeFlag = None
    device: str = "cpu"
    threads: int | None = None
    numa: NumaChoice = "auto"
    sequences: int | None = None
    slowdown: float | None = None
    cache_dtype: Mode | None = None
    queue: int = 1024
    windows: Literal["periodic", "full", "none"] = "periodic"
    interval: int = 4096
    snapshots: int = 32
    prefix_dir: Path | None = None
    prefix_disk: Annotated[str, Parameter(allow_leading_hyphen=True)] = "8GiB"
    dialect: str | None = None
    draft: DraftChoice = "auto"
    fused: bool | None = None
    adapter: Path | None = None

    def options(self, sequences: int = 1, free: int | None = None, slowdown: float = 0) -> dict[str, Any]:
        """The arguments of dsv4.api.loading.load. sequences, slowdown: where the flag is not given. free: bytes
        that shares and limits of memory count from (default: what is free here). Raises ValueError for a flag outside
        its range, before the model is loaded."""
        from dsv4.cache.prefix import ReusePolicy
        from dsv4.cli.flags import at_least, check_threads, step_limit
        from dsv4.encoding import dialect_named
        from dsv4.planning.memory import ALL, check_budget, parse_memory

        if self.dialect is not None:
            dialect_named(self.dialect)
        at_least(1, context=self.context, sequences=self.sequences, queue=self.queue)
        check_threads(self.threads)
        limit = step_limit(self.slowdown, slowdown)
        free = self.card[1] if free is None else free
        memory, experts = self.memory, self.expert_memory
        if memory is not None:
            memory = parse_memory(memory, "--memory", free)
            check_budget("--memory", memory, free)
        if experts not in (None, ALL):
            experts = parse_memory(experts, "--expert-memory", free)
        kept = parse_memory(self.prefix_disk, "--prefix-disk")
        if kept < 2**20:
            raise ValueError(f"--prefix-disk must be at least 1MiB, got {self.prefix_disk}")
        with naming_flags():
            reuse = ReusePolicy(self.windows, self.interval, self.snapshots)
        return {
            "mode": self.mode,
            "context_length": self.context,
            "memory": memory,
            "expert_memory": experts,
            "device": self.device,
            "threads": self.threads,
            "numa": self.numa,
            "sequences": self.sequences or sequences,
            "slowdown": limit,
            "cache_dtype": self.cache_dtype,
            "queue": self.queue,
            "reuse": reuse,
            "prefix_folder": self.prefix_dir,
            "prefix_bytes": kept,
            "dialect": self.dialect,
            "draft": self.draft,
            "fused": self.fused,
            "adapter": self.adapter,
        }

    @property
    def card(self) -> tuple[str, int | None]:
        """The device that --device means, and the free bytes of a card; None for the CPU. Raises ValueError for a card
        that cannot be used."""
        if self.device == "cpu":
            return self.device, None
        from dsv4.model.device import choose_device, free_card_memory

        device = choose_device(self.device, "--device")
        return str(device), None if device.type == "cpu" else free_card_memory(device)

    @property
    def drafting(self) -> tuple[bool, int]:
        """As of dsv4.config.drafts.drafting."""
        from dsv4.config.drafts import drafting
        from dsv4.kernels import native

        return drafting(self.draft, on_card=self.card[0] != "cpu", native=native.available())

    def request(self, free: int | None = None) -> "EngineRequest":
        """What a plan needs of these flags. free: as in `options`."""
        from dsv4.planning.plan import EngineRequest

        wanted = self.options(free=free)
        speculate, lookup = self.drafting
        names = ("mode", "context_length", "memory", "expert_memory", "sequences", "cache_dtype")
        return EngineRequest(
            snapshots=self.snapshots,
            device=self.card[0],
            speculate=speculate,
            lookup=lookup,
            lookup_streamed=self.draft != "auto",
            **{name: wanted[name] for name in names},
        )

    def refuse(self, command: str, *names: str) -> None:
        """Raise ValueError for a flag of `names` that was given to a command that has no use for it."""
        for field in fields(self):
            if field.name in names and getattr(self, field.name) != field.default:
                raise ValueError(f"--{field.name.replace('_', '-')} has no meaning for `{command}`")


@contextmanager
def naming_flags() -> Iterator[None]:
    """While entered, a ValueError that begins with the name of an argument of `dsv4.load` names its flag instead."""
    try:
        yield
    except ValueError as error:
        found = re.match(r"(\w+)(?=:| must | needs )", str(error))
        name = "context" if found and found[0] == "context_length" else found[0] if found else ""
        if type(error) is not ValueError or found is None or name not in EngineFlags.__dataclass_fields__:
            raise
        raise ValueError(f"--{name.replace('_', '-')}{str(error)[found.end() :]}") from None


def load_model(folder: Path | None, options: dict[str, Any], say: Callable[[str], None]) -> "LocalModel":
    """`dsv4.load` for a command that needs texts. options: `EngineFlags.options`; errors name the flags."""
    from dsv4.api.folders import model_folder

    path = model_folder(folder)
    if (path / "config.json").is_file() and not (path / "tokenizer.json").exists():
        raise FileNotFoundError(f"{path}: has no tokenizer.json, so the model can neither read nor write text")
    from dsv4.api.loading import load

    with naming_flags():
        return load(folder, **options, say=say)
