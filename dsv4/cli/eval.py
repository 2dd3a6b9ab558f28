"""`dsv4 eval`: a published benchmark against a model folder or a server."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from dsv4.cli.eval_flags import AskingFlags, OutcomeFlags

if TYPE_CHECKING:
    from dsv4.evals.kept import RunFolder
    from dsv4.evals.run import EvalPlan, EvalProgress, TokenPrice
    from dsv4.evals.suite import Suite
    from dsv4.verify.endpoint import Endpoint

MISSING, BELOW = 3, 4  # exit codes beside those of every command: 1 failed with a message, 2 usage
KEY_VARIABLE, JUDGE_KEY_VARIABLE = "DSV4_EVAL_KEY", "DSV4_EVAL_JUDGE_KEY"
ROOT = Path(__file__).parents[2]  # of the checkout: recipes are no part of the installed package


DEFAULT_ASKING, DEFAULT_OUTCOME = AskingFlags(), OutcomeFlags()


def eval(
    target: str,
    *,
    suite: str,
    model: str = "",
    judge: str = "",
    judge_model: str = "",
    asking: Annotated[AskingFlags, Parameter(name="*")] = DEFAULT_ASKING,
    outcome: Annotated[OutcomeFlags, Parameter(name="*")] = DEFAULT_OUTCOME,
) -> None:
    """Run a benchmark against a server with OpenAI's interface, or against a model folder, which dsv4 serves meanwhile.

    A run lies in a folder (--out) with every answer; the same command goes on with one that was stopped. A server that
    needs a key gets that of DSV4_EVAL_KEY, a judge that of DSV4_EVAL_JUDGE_KEY.

    Exit codes: 0 all answers are there, 1 the run could not start or go on (the message says why), 2 a flag is wrong,
    3 questions could not be answered, 4 all are answered and the score is below --least, 130 stopped with Ctrl-C.

    Parameters
    ----------
    target
        URL of a server, or a model folder (or name).
    suite
        Name of a benchmark (an unknown one lists all), a Python file or a module with a SUITE; nano in a checkout.
    model
        Name of the model in requests. Default: the first that the server lists.
    judge
        URL of a server whose model grades, for suites that are published with a model as the grader.
    judge_model
        Its name. Default: the first that the server lists.
    """
    from dsv4.cli.flags import to_stderr
    from dsv4.evals.kept import RunFolder
    from dsv4.evals.registry import suite_named
    from dsv4.evals.result import check_comparable
    from dsv4.evals.run import TokenPrice, early_plan, make_plan, pilot

    cost = TokenPrice.from_text(outcome.price) if outcome.price else None
    found = suite_named(suite, _recipe_suites())
    settings = pilot(asking.settings(found)) if outcome.dry_run else asking.settings(found)
    grader = _checked_grader(found, judge, judge_model)
    early = early_plan(settings)
    outcome.check({"suite": found.name, "grader": grader} if early is None else _without_model(early, grader))
    with _subject(target, model, asking.concurrency) as subject:
        plan = early or make_plan(settings, subject.count_tokens)
        identity = plan.identity(subject.name, grader)
        if outcome.compare is not None:
            check_comparable(identity, outcome.compare)
        folder = RunFolder(outcome.out or _default_folder(found.name, asking.mode, subject.name), identity, plan.items)
        _tell_plan(plan, folder)
        try:
            problems, facts = _asked(plan, folder, subject, (judge, judge_model), cost, outcome.dry_run)
        except KeyboardInterrupt:
            to_stderr(f"stopped: {_kept(plan, folder)}")
            raise
    if not outcome.dry_run:
        sys.exit(finish(plan, folder, identity, problems, facts | {"target": target}, outcome))
    if problems:
        sys.exit(_failed_pilot(problems))


def _failed_pilot(problems: list[str]) -> int:
    """Print why the answers of a dry run could not be had. The exit code."""
    from dsv4.evals.result import reasons
    from dsv4.observe import printable

    for line in reasons(problems):
        print(printable(line))
    return MISSING


def _default_folder(suite: str, mode: str, model: str) -> Path:
    safe = "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in f"{suite}-{mode}-{model}")
    return Path("runs/eval") / safe


def _recipe_suites() -> dict[str, str]:
    """The modules of the suites of this checkout's recipes, by name."""
    return {file.parent.name: f"recipes.{file.parent.name}.suite" for file in ROOT.glob("recipes/*/suite.py")}


def _checked_grader(suite: "Suite", judge: str, model: str) -> str:
    """What grades, for people. Raises ValueError for a judge that could not be asked, or without the extra."""
    from dsv4.evals.extra import check_extra

    check_extra()
    if model and not judge:
        raise ValueError("--judge-model is the name of a model at --judge, which is not given")
    if suite.judge is None:
        if judge:
            raise ValueError(f"--judge: the suite {suite.name} is graded by rule")
        return "rule"
    if not judge:
        return "rule, instead of the published model"
    _judge_endpoint(judge, model)
    return f"model {model or judge}"


def _without_model(plan: "EvalPlan", grader: str) -> dict[str, Any]:
    """The identity of a run whose model is not known yet."""
    known = plan.identity("", grader)
    del known["model"]
    return known


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is evaluated. start: gives the endpoint and its context in tokens; a folder is served only when it is
    called, since a run that is complete needs no server. count_tokens: of a text."""

    name: str
    start: "Callable[[], tuple[Endpoint, int | None]]"
    count_tokens: Callable[[str], int]


def _subject(target: str, model: str, concurrency: int) -> "AbstractContextManager[_Subject]":
    return _remote(target, model) if "://" in target else _local(target, model, concurrency)


@contextmanager
def _remote(url: str, model: str) -> Iterator[_Subject]:
    """A server that runs. Its own tokenizer counts where it shows one."""
    from dsv4.evals.suite import estimated_tokens
    from dsv4.verify.endpoint import Endpoint
    from dsv4.verify.survey import named, tokenized

    endpoint = Endpoint.from_environment(url, model, KEY_VARIABLE)
    context, _ = named(endpoint)
    count = estimated_tokens
    if tokenized(endpoint, "one two three"):

        def count(text: str) -> int:
            return len(tokenized(endpoint, text))

    yield _Subject(endpoint.model or "unnamed", lambda: (endpoint, context), count)


@contextmanager
def _local(named_folder: str, model: str, concurrency: int) -> Iterator[_Subject]:
    """A model folder, and a server of ours for it."""
    from contextlib import ExitStack

    from dsv4.cli.flags import to_stderr
    from dsv4.cli.folders import served_folder
    from dsv4.cli.server_flags import KEYS_VARIABLE
    from dsv4.encoding import Tokenizer
    from dsv4.verify.endpoint import Endpoint
    from dsv4.verify.own_server import own_server
    from dsv4.verify.survey import named

    folder = served_folder(named_folder)
    tokenizer = Tokenizer.load(folder)
    with ExitStack() as stack:

        def start() -> tuple[Endpoint, int | None]:
            to_stderr(f"serving {folder} on this machine")
            # with the user's keys the server would refuse our requests, which have none
            flags = ["--sequences", str(concurrency)]
            endpoint = Endpoint(stack.enter_context(own_server(folder, flags, hidden=[KEYS_VARIABLE])), model)
            return endpoint, named(endpoint)[0]

        yield _Subject(folder.resolve().name, start, lambda text: len(tokenizer.encode_text(text)))


def _tell_plan(plan: "EvalPlan", folder: "RunFolder") -> None:
    from dsv4.cli.flags import to_stderr

    own, total, done = plan.settings, len(plan.wanted), len(folder.answers)
    to_stderr(f"{own.suite.name}: {own.suite.about}")
    to_stderr(
        f"{len(plan.items):,} items x {plan.samples} from {plan.data.origin}; mode {own.mode.value}, at most "
        f"{own.budget:,} tokens each, so at most {total * own.budget:,}; {own.concurrency} at once; "
        f"run folder {folder.folder}"
    )
    if done:
        to_stderr(f"going on: {done:,} of {total:,} answers are there")


def _asked(
    plan: "EvalPlan",
    folder: "RunFolder",
    subject: _Subject,
    judging: tuple[str, str],
    price: "TokenPrice | None",
    dry_run: bool,
) -> tuple[list[str], dict[str, Any]]:
    """Ask for what is missing. Gives why answers could not be had, and facts of the run."""
    from datetime import UTC, datetime

    from dsv4.cli.progress import RunProgress
    from dsv4.evals.client import Client
    from dsv4.evals.run import PILOT, ask, estimate
    from dsv4.observe import printable

    if len(folder.answers) >= len(plan.wanted):
        return [], {}
    judged_by = _reached_judge(*judging)  # before a model is loaded
    endpoint, context = subject.start()
    began = datetime.now(UTC).isoformat(timespec="seconds")
    with RunProgress(len(plan.wanted), len(folder.answers)) as bar:
        told: list[bool] = []

        def tell(line: str) -> None:
            bar.console.print(printable(line), soft_wrap=True)

        def show(progress: "EvalProgress") -> None:
            if not told and progress.done >= plan.settings.concurrency and not dry_run:
                told.append(True)
                tell(estimate(progress, price))
            _show(bar, plan.settings.suite.name, progress)

        judge = None if judged_by is None else Client(judged_by, tell)
        most = PILOT if dry_run else None
        progress, problems = ask(plan, folder, Client(endpoint, tell), context, judge=judge, most=most, show=show)
    if dry_run and progress.done:
        print(estimate(progress, price))
    facts = {"began": began, "seconds": round(progress.seconds, 1), "context": context or "not told"}
    return problems, facts


def _judge_endpoint(url: str, model: str) -> "Endpoint":
    from dsv4.verify.endpoint import Endpoint

    try:
        return Endpoint.from_environment(url, model, JUDGE_KEY_VARIABLE)
    except ValueError as error:
        raise ValueError(f"--judge: {error}") from None


def _reached_judge(url: str, model: str) -> "Endpoint | None":
    """The judge, whose model is known then. Raises ValueError where it cannot be reached."""
    if not url:
        return None
    from dsv4.verify.endpoint import UnreachableError
    from dsv4.verify.survey import named

    endpoint = _judge_endpoint(url, model)
    try:
        named(endpoint)
    except UnreachableError as error:
        raise ValueError(f"--judge: {error}") from None
    return endpoint


def _show(bar: Any, name: str, progress: "EvalProgress") -> None:
    done = progress.before + progress.done
    rate = "" if progress.rate is None else f"{progress.rate:,.0f} tokens/s, "
    text = f"{100 * progress.value / progress.done:.1f} so far, {rate}{progress.cut} cut, "
    bar.show(done, f"{done:,} of {progress.total:,}", name, text + f"{progress.left / 60:.1f} minutes left")


def finish(
    plan: "EvalPlan",
    folder: "RunFolder",
    identity: dict[str, Any],
    problems: list[str],
    facts: dict[str, Any],
    outcome: OutcomeFlags,
) -> int:
    """Write and print the result. The exit code."""
    import json

    from dsv4.evals.kept import REPORT, RESULT
    from dsv4.evals.page import page
    from dsv4.evals.result import lines, result_of
    from dsv4.files import write_whole
    from dsv4.observe import printable

    result = result_of(
        plan.settings.suite,
        identity,
        folder.answers,
        len(plan.wanted),
        problems=problems,
        facts=facts,
        against=outcome.compare,
    )
    for line in lines(result):
        print(printable(line))
    text = json.dumps(result, ensure_ascii=False, indent=1) + "\n"
    write_whole(folder.folder / RESULT, lambda file: file.write(text.encode("utf-8", "backslashreplace")))
    html = page(result, folder.answers)
    write_whole(folder.folder / REPORT, lambda file: file.write(html.encode("utf-8", "replace")))
    print(f"report: {folder.folder / REPORT}")
    if result["missing"]:
        print(printable(_kept(plan, folder)))
        return MISSING
    if outcome.least is not None and result["score"]["value"] < outcome.least:
        print(f"{result['score']['value']:.1f} is below --least {outcome.least:g}")
        return BELOW
    return 0


def _kept(plan: "EvalPlan", folder: "RunFolder") -> str:
    """What a run that is not complete has, and how it goes on."""
    done, total = len(folder.answers), len(plan.wanted)
    return f"{done:,} of {total:,} answers are kept in {folder.folder}; the same command asks only for the other ones"
