"""`dsv4 simulate`: what a number of machines would serve, by the real scheduler on a simulated clock."""

import json as json_format
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from dsv4.cli.flags import SERVER_SLOWDOWN, step_limit
from dsv4.cli.workload_flags import Repeated, WorkloadFlags

if TYPE_CHECKING:
    from dsv4.planning.files import ModelFiles
    from dsv4.simulate.cluster import Capacity, Offered
    from dsv4.simulate.hardware import Accelerator
    from dsv4.simulate.roofline import Assumptions, ClusterLayout
    from dsv4.workload.timing import TimingSummary

DEFAULT_LOAD = WorkloadFlags()
USERS = 32  # of an engine, where no load is given
MOST_NODES = 1000
MEASURED_CONTEXT = 16_384


@dataclass(frozen=True, slots=True)
class ClusterFlags:
    """Machines and engines.

    Parameters
    ----------
    on
        Device: h100, h200, h20, b200, b300, gb200, mi300x, mi325x, mi355x, or one of --hardware.
    hardware
        TOML file of more devices, in the form of dsv4/simulate/hardware.toml.
    nodes
        Number of nodes; repeat the flag for several.
    tensor
        Devices of one engine. Default: 1.
    expert
        Devices that share the routed experts. Default: the fewest whole nodes that hold them.
    context
        Largest prompt plus answer in tokens.
    sequences
        Requests that run at the same time in one engine. Default: 64; with --measure 8.
    step_tokens
        Tokens of one step. Default: 4,096; with --measure 512.
    slowdown
        Where a prompt is computed beside answers, a step takes at most this many times as long as without the prompt;
        more than 1, or 0 for no limit. Default: 2, as in `dsv4 serve`.
    price
        US dollars for an hour of one device.
    assume
        Change an assumption, as compute=0.4, memory, links (shares of peaks), layer_seconds, step_seconds,
        sync_seconds; repeat the flag for several.
    """

    on: str = "h200"
    hardware: Path | None = None
    nodes: Annotated[Sequence[int], Repeated] = (1,)
    tensor: int | None = None
    expert: int | None = None
    context: int = 131_072
    sequences: int | None = None
    step_tokens: int | None = None
    slowdown: float | None = None
    price: float | None = None
    assume: Annotated[Sequence[str], Repeated] = ()

    @property
    def step_limit(self) -> float | None:
        """The `slowdown` of engines. Raises ValueError for one out of its range."""
        return step_limit(self.slowdown, SERVER_SLOWDOWN)

    def check(self) -> None:
        """Raise ValueError for a number below its range."""
        from dsv4.cli.flags import at_least

        at_least(1, tensor=self.tensor, expert=self.expert, context=self.context, sequences=self.sequences)
        at_least(1, step_tokens=self.step_tokens)
        if wrong := [count for count in self.nodes or (0,) if not 1 <= count <= MOST_NODES]:
            raise ValueError(f"--nodes must be in [1, {MOST_NODES}], got {wrong[0]}")
        step_limit(self.slowdown, SERVER_SLOWDOWN)


DEFAULT_CLUSTER = ClusterFlags()


def simulate(
    *model: str,
    seed: int = 0,
    json: bool = False,
    measure: bool = False,
    cluster: Annotated[ClusterFlags, Parameter(name="*")] = DEFAULT_CLUSTER,
    load: Annotated[WorkloadFlags, Parameter(name="*")] = DEFAULT_LOAD,
) -> None:
    """Print tokens a second, times to first tokens, cache hits, memory and cost of models on 1 to 1,000 nodes, without
    any of them: the engine's scheduler and cache run on a clock that counts operations and bytes.

    --users and --rate are of the whole cluster; with neither, 32 users for each engine. With --measure, this machine's
    processor runs a folder for about a minute instead: the times of its steps are measured, and the simulation stands
    beside the real engine.

    Parameters
    ----------
    model
        flash, pro, flash-0731, pro-0813, or folders. Default: flash and pro; with --measure the bundled model.
    seed
        Of lengths and arrivals.
    json
        Print one JSON object in place of a table.
    measure
        Measure this machine with a folder, and compare.
    """
    from dsv4.cli.flags import at_least, naming_arguments

    cluster.check()
    at_least(1, requests=load.requests)
    loads = _loads(load, seed)
    if measure:
        _measured(model, loads, cluster, json)
        return
    device = _device(cluster.on, cluster.hardware, cluster.price)
    with naming_arguments():
        assumed = _assumed(cluster.assume)
        found = _capacities(model or ("flash", "pro"), device, cluster, loads, assumed)
    if json:
        about = {"assumptions": asdict(assumed), "workload": asdict(loads[0].workload)}
        print(json_format.dumps({**about, "capacities": [capacity.to_dict() for capacity in found]}, indent=1))
    else:
        _show(found, assumed)


def _loads(load: WorkloadFlags, seed: int) -> "list[Offered]":
    """Each level of load; users are None where the number of engines decides."""
    from dsv4.cli.flags import naming_arguments
    from dsv4.simulate.cluster import Offered
    from dsv4.workload.kinds import faster

    with naming_arguments():
        trace = tuple(faster(load.traced(), load.speed)) if load.trace is not None else ()
        first = Offered(load.made("agent"), trace, None, None, load.most, load.limits(), seed)
    for flag, values in (("--rate", load.rate), ("--users", load.users)):
        if wrong := [value for value in values if not 0 < value < math.inf]:
            raise ValueError(f"{flag} must be more than 0 and finite, got {wrong[0]:g}")
    many = [replace(first, rate=rate) for rate in load.rate] + [replace(first, users=count) for count in load.users]
    return many or [first]


def _device(on: str, hardware: Path | None, price: float | None) -> "Accelerator":
    from dsv4.simulate.hardware import find_hardware

    device = find_hardware(on, hardware)
    if price is None:
        return device
    if not 0 < price < math.inf:
        raise ValueError(f"--price must be more than 0 dollars an hour, got {price:g}")
    return replace(device, price=price)


def _assumed(changes: Sequence[str]) -> "Assumptions":
    from dsv4.simulate.roofline import Assumptions

    known = [field.name for field in fields(Assumptions)]
    values: dict[str, float] = {}
    for change in changes:
        name, _, text = change.partition("=")
        try:
            values[name] = float(text)
        except ValueError:
            name = ""
        if name not in known:
            raise ValueError(f"assume must be NAME=NUMBER with a name of {', '.join(known)}, got {change!r}")
        if not 0 <= values[name] < math.inf:
            raise ValueError(f"--assume {name} must be at least 0 and finite, got {values[name]:g}")
    try:
        return Assumptions(**values)
    except ValueError as error:
        raise ValueError(f"--assume {error}") from None


def _capacities(
    models: Sequence[str],
    device: "Accelerator",
    cluster: ClusterFlags,
    loads: "list[Offered]",
    assumed: "Assumptions",
) -> "list[Capacity]":
    from dsv4.cli.flags import to_stderr
    from dsv4.cli.plan import find_files
    from dsv4.simulate.cluster import EngineWishes, lay_out
    from dsv4.simulate.cluster import simulate as simulate_cluster

    wishes = EngineWishes(
        cluster.context, cluster.sequences or 64, cluster.step_tokens or 4096, slowdown=cluster.step_limit
    )
    layouts: list[tuple[str, ModelFiles, int, ClusterLayout]] = []
    misfits: list[tuple[str, ValueError]] = []
    for name, count in product(models, cluster.nodes):
        files = find_files(name)
        try:
            layouts.append((name, files, count, lay_out(files, device, count, cluster.tensor, cluster.expert)))
        except ValueError as error:  # of several models and sizes, those that fit are simulated
            misfits.append((f"{name} on {count} nodes", error))
    if not layouts:
        raise misfits[0][1]
    for place, error in misfits:
        to_stderr(f"{place} is left out: {error}")
    found: list[Capacity] = []
    for name, files, count, layout in layouts:
        for offered in loads:
            if offered.users is None and offered.rate is None and not offered.trace:
                engines = count * device.devices // layout.tensor
                offered = replace(offered, users=USERS * engines)
            to_stderr(f"{name} on {count} nodes of {device.devices} {device.name}")
            found.append(simulate_cluster(files, layout, count, offered, wishes, assumed))
    return found


def _show(found: "list[Capacity]", assumed: "Assumptions") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    heads = ("model", "nodes", "tensor x expert", "users", "output tok/s", "total tok/s", "output tok/s a device")
    times = ("TTFT p50 s", "p99", "ITL p50 ms", "p99", "cached", "weights GiB a device", "cache GiB")
    table = Table(*heads, *times, "device-hours a M output", "$ a M output")
    for column in table.columns:
        column.justify = "right"
    for one in found:
        summary = one.summary
        table.add_row(
            escape(one.model), f"{one.nodes:,}", f"{one.layout.tensor} x {one.layout.expert}", f"{_running(one):,.0f}",
            f"{one.output_rate:,.0f}", f"{one.total_rate:,.0f}", f"{one.output_rate / one.devices:,.0f}",
            *_times(summary), f"{one.weights / 2**30:,.1f}", f"{one.cache / 2**30:,.1f}", f"{one.device_hours:.3f}",
            "-" if one.cost is None else f"{one.cost:.3f}",
        )  # fmt: skip
    Console(highlight=False, width=None if Console().is_terminal else 220).print(table)
    print(
        "Not measured: peaks of the makers with these assumptions (--assume), uniform routing, full overlap of experts'"
    )
    print("traffic with computing: " + ", ".join(f"{name}={value:g}" for name, value in asdict(assumed).items()))


def _running(one: "Capacity") -> float:
    """Mean number of requests that run in the cluster, by Little's law."""
    summary = one.summary
    return one.scale * summary.request_rate * summary.e2e.get("mean", 0.0)


def _times(summary: "TimingSummary") -> tuple[str, ...]:
    return (
        f"{summary.ttft.get('p50', 0):.2f}", f"{summary.ttft.get('p99', 0):.2f}",
        f"{1000 * summary.itl.get('p50', 0):.2f}", f"{1000 * summary.itl.get('p99', 0):.2f}",
        f"{summary.hit_rate or 0:.0%}",
    )  # fmt: skip


def _measured(models: Sequence[str], loads: "list[Offered]", cluster: ClusterFlags, json: bool) -> None:
    """The real engine beside its simulation, on this machine, one thread."""
    if len(models) > 1:
        raise ValueError(f"--measure takes one folder, got {' and '.join(models)}")
    from dsv4.api.loading import load
    from dsv4.cli.flags import to_stderr
    from dsv4.cli.folders import model_folder
    from dsv4.simulate.compare import compare

    options: dict[str, Any] = {
        "sequences": cluster.sequences or 8,
        "step_tokens": cluster.step_tokens or 512,
        "context_length": min(cluster.context, MEASURED_CONTEXT),
        "slowdown": cluster.step_limit,
        "draft": "none",  # the simulation knows no drafts
    }
    loaded = load(model_folder(models[0] if models else None), threads=1, say=to_stderr, **options)
    found = [compare(loaded.engine, offered, to_stderr) for offered in loads]
    if json:
        print(json_format.dumps([one.to_dict() for one in found], indent=1))
        return
    for one in found:
        for line in one.lines():
            print(line)
