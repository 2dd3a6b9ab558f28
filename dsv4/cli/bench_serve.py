"""`dsv4 bench serve URL`: how fast servers answer under load, several of them side by side."""

import json as json_format
import os
import secrets
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from cyclopts import Parameter

from dsv4.workload.kinds import Kind

if TYPE_CHECKING:
    from dsv4.bench.serving.run import BenchReport
    from dsv4.bench.serving.settings import BenchSettings, Load
    from dsv4.bench.serving.target import Target
    from dsv4.workload.trace import Session

KEY_VARIABLE = "DSV4_BENCH_KEY"
NOT_RUN = 2
Repeated = Parameter(negative=())


def bench_serve(
    url: str,
    *,
    against: Annotated[Sequence[str], Repeated] = (),
    workload: Kind = "fixed",
    trace: Path | None = None,
    rate: Annotated[Sequence[float], Repeated] = (),
    users: Annotated[Sequence[int], Repeated] = (),
    requests: int = 64,
    seconds: float = 60.0,
    patience: float = 60.0,
    most: int = 256,
    input: int = 512,
    output: int = 128,
    shared: int = 2048,
    turns: int = 8,
    tool: int = 256,
    delay: float = 0.0,
    speed: float = 1.0,
    max_ttft: float | None = None,
    max_tpot: float | None = None,
    max_e2e: float | None = None,
    model: str = "",
    extra: str = "{}",
    seed: int | None = None,
    remote: bool = False,
    report: Path | None = None,
    json: Path | None = None,
    write_trace: Path | None = None,
) -> None:
    """Measure servers with OpenAI's chat completions under load: times to first tokens, between tokens, rates, errors.

    Each --rate and each --users is one level of load; with neither, one user. The exit code is 0 if answers came, 1 if
    none did, and 2 if an endpoint could not be used at the start. The key of URL is read from DSV4_BENCH_KEY, those of
    --against from DSV4_BENCH_KEY_2, DSV4_BENCH_KEY_3 and so on.

    Parameters
    ----------
    url
        http://127.0.0.1:PORT of a server of this machine; others need --remote.
    against
        URL of another server, measured in turns with the first; repeat the flag for several.
    workload
        fixed: prompts of one length. prefix: behind a system prompt that all share. agent: conversations that grow by
        answers and results of tools.
    trace
        JSONL file of requests in place of a workload (docs/capacity.md), at its own times or at --rate or --users.
    rate
        Open loop: sessions that arrive a second (Poisson), whatever the server does; repeat the flag for several.
    users
        Closed loop: sessions at a time, each followed by the next; repeat the flag for several.
    requests
        The most requests at one level of load.
    seconds
        After so long no request is sent any more at one level of load.
    patience
        Seconds that running answers get after that; then they are cut.
    most
        Requests at a time in an open loop.
    input
        Tokens of a prompt, of an agent's first one; without those of the shared system prompt.
    output
        Tokens of an answer; of an agent's on average.
    shared
        Tokens of the system prompt that all sessions of prefix and agent share.
    turns
        Requests of an agent.
    tool
        Tokens of a tool's result on average.
    delay
        Seconds that a tool runs on average.
    speed
        Divide a trace's times by this.
    max_ttft
        Limit for goodput: seconds to the first token.
    max_tpot
        Limit for goodput: mean seconds of a token after the first.
    max_e2e
        Limit for goodput: seconds to the end of the answer.
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
    from dsv4.bench.serving.settings import BenchSettings
    from dsv4.cli.flags import naming_arguments, writable
    from dsv4.workload.kinds import Workload
    from dsv4.workload.timing import Limits

    writable("--report", report, ".html")
    writable("--json", json, ".json")
    writable("--write-trace", write_trace, ".jsonl")
    sessions = _traced(trace, rate, users)
    with naming_arguments():
        settings = BenchSettings(
            _loads(rate, users, bool(sessions)),
            Workload(workload, input, output, shared, turns, tool, delay),
            sessions,
            **{"requests": requests, "seconds": seconds, "patience": patience, "most": most, "speed": speed},
            limits=Limits(max_ttft, max_tpot, max_e2e),
            extra=_extra(extra),
            salt=secrets.token_hex(4) if seed is None else str(seed),
            seed=seed or 0,
        )
    targets = _targets([url, *against], model, patience, remote)
    if write_trace is not None:
        from dsv4.workload.trace import write_trace as write

        write(write_trace, [request for session in settings.sessions(0) for request in session])
    found = _run(targets, settings)
    _write(found, report, json)
    sys.exit(0 if all(point.summary.finished for point in found.points) else 1)


def _loads(rates: Sequence[float], users: Sequence[int], traced: bool) -> "tuple[Load, ...]":
    from dsv4.bench.serving.settings import Load

    found = (*(Load(rate=rate) for rate in rates), *(Load(users=count) for count in users))
    return found or (Load() if traced else Load(users=1),)


def _traced(file: Path | None, rates: Sequence[float], users: Sequence[int]) -> "tuple[Session, ...]":
    """The sessions of a trace. Raises ValueError for one that has no times where they are needed."""
    if file is None:
        return ()
    from dsv4.workload.trace import read_trace, sessions_of

    sessions = tuple(sessions_of(read_trace(file)))
    if not (rates or users) and any(session[0].at is None for session in sessions):
        raise ValueError(f"--trace {file} has requests without a timestamp: give --rate or --users")
    return sessions


def _extra(text: str) -> dict[str, Any]:
    try:
        value = json_format.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"--extra must be a JSON object, got {text[:40]!r}")
    return value


def _targets(urls: Sequence[str], model: str, patience: float, remote: bool) -> "list[Target]":
    """Each with its own key, so that no key travels to another server."""
    from dsv4.bench.serving.target import Target
    from dsv4.verify.endpoint import Endpoint

    targets: list[Target] = []
    for place, url in enumerate(urls, 1):
        key = os.environ.get(KEY_VARIABLE if place == 1 else f"{KEY_VARIABLE}_{place}", "")
        endpoint = Endpoint(url, model, key, silence=patience)
        host = urlsplit(endpoint.url).hostname or ""
        if not (remote or _own(host)):
            raise ValueError(f"{url} is not on this machine (127.0.0.1, ::1, localhost): to load it, add --remote")
        name = urlsplit(endpoint.url).netloc
        taken = {target.name for target in targets}
        targets.append(Target(endpoint, name if name not in taken else f"{name} ({place})"))
    return targets


def _own(host: str) -> bool:
    """Whether a host is this machine by its very name."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _run(targets: "list[Target]", settings: "BenchSettings") -> "BenchReport":
    """The report; each point is shown at once. Exits with NOT_RUN for an endpoint that cannot be used."""
    from dsv4.bench.serving.page import COLUMNS, rows
    from dsv4.bench.serving.run import Point, run
    from dsv4.cli.flags import to_stderr
    from dsv4.observe import printable
    from dsv4.verify.endpoint import RefusedError, UnreachableError

    widths = [max(12, *(len(target.name) for target in targets)), 9]

    def line(cells: Sequence[str]) -> str:
        first = f"{cells[0]:<12} {cells[1]:<{widths[0]}}"
        return first + "".join(
            f" {cell:>{max(widths[1], len(head))}}" for cell, head in zip(cells[2:], COLUMNS[2:], strict=True)
        )

    def show(point: Point) -> None:
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

    if report is not None:
        report.write_text(page(found), encoding="utf-8")
    if json is not None:
        json.write_text(json_format.dumps(found.to_dict(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
