"""`dsv4 bench serve URL`: how fast servers answer under load, several of them side by side."""

import json as json_format
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from cyclopts import Parameter

from dsv4.cli.workload_flags import Repeated, WorkloadFlags

if TYPE_CHECKING:
    from dsv4.bench.serving.run import BenchReport
    from dsv4.bench.serving.settings import BenchSettings
    from dsv4.bench.serving.target import BenchTarget

KEY_VARIABLE = "DSV4_BENCH_KEY"
NOT_RUN = 2
DEFAULT_LOAD = WorkloadFlags()


def bench_serve(
    url: str,
    *,
    against: Annotated[Sequence[str], Repeated] = (),
    seconds: float = 60.0,
    patience: float = 60.0,
    most: int = 256,
    model: str = "",
    extra: str = "{}",
    seed: int | None = None,
    remote: bool = False,
    report: Path | None = None,
    json: Path | None = None,
    write_trace: Path | None = None,
    load: Annotated[WorkloadFlags, Parameter(name="*")] = DEFAULT_LOAD,
) -> None:
    """Measure servers with OpenAI's chat completions under load: times to first tokens, between tokens, rates, errors.

    Each --rate and each --users is one level of load; with neither, one user. The exit code is 0 if answers came, 1
    if none did at some level of load, and 2 if an endpoint could not be used at the start. The key of URL is read
    from DSV4_BENCH_KEY, those of --against from DSV4_BENCH_KEY_2, DSV4_BENCH_KEY_3 and so on.

    Parameters
    ----------
    url
        http://127.0.0.1:PORT of a server of this machine; others need --remote.
    against
        URL of another server, measured in turns with the first; repeat the flag for several.
    seconds
        After so long no request is sent any more at one level of load.
    patience
        Seconds that running answers get after that; then they are cut.
    most
        Requests at a time in an open loop.
    model
        Name of the model in requests. Default: the first that each server lists.
    extra
        JSON object of more fields of each request.
    seed
        The same prompts and times in every run with this number; a server that still has them in its cache looks
        faster. Default: new prompts.
    remote
        Allow servers of other machines. Ask their owners first.
    report
        Write the report with charts as one HTML file.
    json
        Write the figures as one JSON object.
    write_trace
        Write what the first level of load sends as a trace.
    """
    _check_files(report, json, write_trace)
    settings = _settings(load, seconds, patience, most, _extra(extra), seed)
    targets = _targets([url, *against], model, patience, remote)
    _write_trace(settings, write_trace)
    found = _run(targets, settings)
    _write(found, report, json)
    sys.exit(0 if all(point.summary.finished for point in found.points) else 1)


def _check_files(report: Path | None, json: Path | None, write_trace: Path | None) -> None:
    """Raise ValueError for a name that could not be written at the end."""
    from dsv4.cli.flags import writable

    writable("--report", report, ".html")
    writable("--json", json, ".json")
    writable("--write-trace", write_trace, ".jsonl")


def _settings(
    load: WorkloadFlags, seconds: float, patience: float, most: int, extra: dict[str, Any], seed: int | None
) -> "BenchSettings":
    from dsv4.bench.serving.settings import BenchSettings, LoadLevel
    from dsv4.cli.flags import naming_arguments

    sessions = load.traced()
    with naming_arguments():
        loads = (*(LoadLevel(rate=rate) for rate in load.rate), *(LoadLevel(users=count) for count in load.users))
        return BenchSettings(
            loads or (LoadLevel() if sessions else LoadLevel(users=1),),
            load.made("fixed"),
            sessions,
            load.most,
            seconds,
            patience,
            most,
            load.speed,
            load.limits(),
            extra,
            salt=secrets.token_hex(4) if seed is None else str(seed),
            seed=seed or 0,
        )


def _write_trace(settings: "BenchSettings", file: Path | None) -> None:
    if file is not None:
        from dsv4.workload.trace import write_trace

        write_trace(file, [request for session in settings.sessions(0) for request in session])


def _extra(text: str) -> dict[str, Any]:
    try:
        value = json_format.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"--extra must be a JSON object, got {text[:40]!r}")
    return value


def _targets(urls: Sequence[str], model: str, patience: float, remote: bool) -> "list[BenchTarget]":
    """Each with its own key, so that no key travels to another server."""
    from dsv4.bench.serving.target import BenchTarget
    from dsv4.server.guard.origin import is_loopback
    from dsv4.verify.endpoint import Endpoint

    targets: list[BenchTarget] = []
    for place, url in enumerate(urls, 1):
        key = os.environ.get(KEY_VARIABLE if place == 1 else f"{KEY_VARIABLE}_{place}", "")
        endpoint = Endpoint(url, model, key, silence=patience)
        if not (remote or is_loopback(urlsplit(endpoint.url).hostname)):
            raise ValueError(f"{url} is not on this machine (127.0.0.1, ::1, localhost): to load it, add --remote")
        name = urlsplit(endpoint.url).netloc
        taken = {target.name for target in targets}
        targets.append(BenchTarget(endpoint, name if name not in taken else f"{name} ({place})"))
    return targets


def _run(targets: "list[BenchTarget]", settings: "BenchSettings") -> "BenchReport":
    """The report; each point is shown at once. Exits with NOT_RUN for an endpoint that cannot be used."""
    from dsv4.bench.serving.page import COLUMNS, rows
    from dsv4.bench.serving.run import LoadPoint, run
    from dsv4.cli.flags import to_stderr
    from dsv4.observe import printable
    from dsv4.verify.endpoint import RefusedError, UnreachableError

    widths = [max(12, *(len(target.name) for target in targets)), 9]

    def line(cells: Sequence[str]) -> str:
        first = f"{cells[0]:<12} {cells[1]:<{widths[0]}}"
        return first + "".join(
            f" {cell:>{max(widths[1], len(head))}}" for cell, head in zip(cells[2:], COLUMNS[2:], strict=True)
        )

    def show(point: LoadPoint) -> None:
        print(printable(line(rows([point])[0])), flush=True)

    try:
        print(line(COLUMNS), flush=True)
        found = run(targets, settings, to_stderr, show)
    except (RefusedError, UnreachableError) as error:
        to_stderr(f"dsv4: a server cannot be measured: {error}")
        sys.exit(NOT_RUN)
    for name, texts in found.warnings.items():
        for text in texts:
            to_stderr(f"note: {name}: {text}")
    for point in found.points:
        for kind, count in point.summary.errors.items():
            to_stderr(f"note: {point.target}: {point.load.name}: {count} times {kind}")
    return found


def _write(found: "BenchReport", report: Path | None, json: Path | None) -> None:
    from dsv4.bench.serving.page import page
    from dsv4.cli.flags import write_files

    def data() -> str:
        return json_format.dumps(found.to_dict(), ensure_ascii=False, indent=1) + "\n"

    write_files((report, lambda: page(found)), (json, data))
