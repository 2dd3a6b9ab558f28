"""`dsv4 verify`: does a server of DeepSeek-V4 do what it should?"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

from cyclopts import Parameter

if TYPE_CHECKING:
    from dsv4.verify.endpoint import Endpoint
    from dsv4.verify.findings import Report
    from dsv4.verify.settings import Settings

NOT_RUN = 2


def verify(
    target: str,
    *,
    only: Annotated[Sequence[str], Parameter(negative=())] = (),
    skip: Annotated[Sequence[str], Parameter(negative=())] = (),
    minutes: float = 30.0,
    model: str = "",
    dialect: str | None = None,
    fixtures: Path | None = None,
    questions: Annotated[Sequence[Path], Parameter(negative=())] = (),
    record: Path | None = None,
    bound: Annotated[Sequence[str], Parameter(negative=())] = (),
    report: Path | None = None,
    json: Path | None = None,
) -> None:
    """Check a server by its HTTP interface: prompts, lengths, batches, calls of tools, streams, usage.

    The exit code is 0 if nothing is wrong, 1 if there are faults, and 2 if the server could not be checked, not within
    the time, or not with all questions of --questions. A server that needs a key gets that of DSV4_VERIFY_KEY.

    Parameters
    ----------
    target
        URL of a server with OpenAI's interface, or a model folder (or name): then dsv4 serves it meanwhile.
    only
        surface, rendering, lengths, batches, calls or fixtures; repeat the flag for several.
    skip
        Checks to leave out; repeat the flag for several.
    minutes
        Time of the whole run.
    model
        Name of the model in requests. Default: the first that the server lists.
    dialect
        v4, v4-0731 or v4.1. Default: what the server tells, or that which fits its prompts best.
    fixtures
        JSONL file of recorded answers, to which this server's are compared.
    questions
        JSONL file of BFCL, or in its form, whose questions the check of calls asks too; repeat the flag for several.
        A line that is no such question is told, with its field, and the others are asked.
    record
        Write such a file from this server, and check nothing.
    bound
        A measure outside of it is a fault, as "fixtures.top-1>=0.95"; repeat the flag for several.
    report
        Write the report as one HTML file.
    json
        Write the report as one JSON object.
    """
    from dsv4.verify.bfcl_file import read_questions
    from dsv4.verify.settings import Settings, read_bounds

    _check_files(dialect, fixtures, report, json, record)
    wanted = (tuple(only), tuple(skip), minutes * 60, dialect or "", fixtures, read_bounds(bound))
    asked, wrong = read_questions(questions)
    settings = Settings(*wanted, tuple(asked), tuple(wrong))
    _tell_wrong(wrong)
    found = _run(target, model, settings, record)
    if found is not None:
        _end(found, report, json)


def _tell_wrong(lines: Sequence[str]) -> None:
    """What is no question, before the minutes of the run."""
    from dsv4.cli.flags import to_stderr
    from dsv4.observe import printable

    for line in lines:
        to_stderr(f"not asked: {printable(line)}")


def _end(found: "Report", report: Path | None, json: Path | None) -> NoReturn:
    _tell(found)
    sys.stdout.flush()
    _write(found, report, json)
    sys.exit(found.exit_code)


def _check_files(
    dialect: str | None, fixtures: Path | None, report: Path | None, json: Path | None, record: Path | None
) -> None:
    """Raise ValueError for what would fail only after minutes."""
    from dsv4.cli.flags import writable
    from dsv4.encoding import dialect_named
    from dsv4.verify.fixture_file import read_fixtures

    writable("--report", report, ".html")
    writable("--json", json, ".json")
    writable("--record", record, ".jsonl")
    if dialect is not None:
        dialect_named(dialect)
    if fixtures is not None:
        read_fixtures(fixtures)


def _run(target: str, model: str, settings: "Settings", record: Path | None) -> "Report | None":
    """The report; None if fixtures were recorded instead. Exits with NOT_RUN where the endpoint cannot be used."""
    from dsv4.cli.flags import to_stderr
    from dsv4.verify.endpoint import RefusedError, TimeUp, UnreachableError
    from dsv4.verify.own_server import NotStartedError

    try:
        with _endpoint(target, model) as endpoint:
            if record is None:
                return _verified(endpoint, settings)
            _record(endpoint, record)
            return None
    except (RefusedError, UnreachableError) as error:
        to_stderr(f"dsv4: {target} cannot be checked: {error}")
        sys.exit(NOT_RUN)
    except TimeUp:
        to_stderr(f"dsv4: {target} cannot be checked: it did not tell what it can do within --minutes")
        sys.exit(NOT_RUN)
    except NotStartedError as error:
        for line in f"dsv4: {target} cannot be checked: {error}".splitlines():
            to_stderr(line)
        sys.exit(NOT_RUN)


@contextmanager
def _endpoint(target: str, model: str) -> "Iterator[Endpoint]":
    """The endpoint of a URL, or of a server of ours for a folder while the block runs."""
    from dsv4.cli.flags import to_stderr
    from dsv4.verify.endpoint import Endpoint

    if "://" in target:
        yield Endpoint.from_environment(target, model)
        return
    from dsv4.cli.folders import served_folder
    from dsv4.cli.server_flags import KEYS_VARIABLE
    from dsv4.verify.own_server import own_server

    folder = served_folder(target)
    to_stderr(f"serving {folder} on this machine")
    # with the user's keys the server would refuse the checks, which have none
    with own_server(folder, hidden=[KEYS_VARIABLE]) as url:
        yield Endpoint(url, model)


def _verified(endpoint: "Endpoint", settings: "Settings") -> "Report":
    from dsv4.cli.flags import to_stderr
    from dsv4.verify.run import verify

    return verify(endpoint, settings, to_stderr)


def _record(endpoint: "Endpoint", file: Path) -> None:
    from dsv4.cli.flags import to_stderr
    from dsv4.verify.record import record
    from dsv4.verify.survey import survey

    survey(endpoint)
    count = record(endpoint, file, to_stderr)
    print(f"{file}: {count} fixtures of {endpoint.model} at {endpoint.url}")


def _write(found: "Report", report: Path | None, json: Path | None) -> None:
    import json as json_format

    from dsv4.cli.flags import write_files
    from dsv4.verify.page import page

    def data() -> str:
        return json_format.dumps(found.to_dict(), ensure_ascii=False, indent=1) + "\n"

    write_files((report, lambda: page(found)), (json, data))


def _tell(found: "Report") -> None:
    """The result on stdout: a line for each check, its faults and figures below it."""
    from dsv4.observe import printable

    for result in found.results:
        print(f"{result.name:<10} {result.outcome.value:<8} {result.requests:>5} requests {result.seconds:>7.1f} s")
        for one in result.findings:
            times = f" ({one.times} times)" if one.times > 1 else ""
            print(f"  {one.severity.value}: {one.check}.{one.code}{times}")
            print(f"    expected {printable(one.expected)}\n    got      {printable(one.got)}")
            if one.reproduce:
                print(f"    {printable(one.reproduce[:600])}{'...' if len(one.reproduce) > 600 else ''}")
        for measure in result.measures:
            print(f"  {measure.name} {measure.value:.4g}: {measure.meaning}")
        for text in result.skipped:
            print(f"  not checked: {printable(text)}")
    if found.mistakes:
        print(f"{len(found.mistakes)} kinds of mistake of the model, for which the server is not to blame")
    for line in found.wrong_lines:
        print(f"not asked: {printable(line)}")
    if found.wrong_lines:
        print(f"{len(found.wrong_lines)} lines of --questions are no questions")
    print({0: "no fault found", 1: f"{len(found.faults)} kinds of fault", 2: "not finished"}[found.exit_code])
