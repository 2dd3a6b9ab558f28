"""The result of a run as one JSON object: figures with standard errors, by group, beside what was published."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dsv4.evals import statistics
from dsv4.evals.heat_map import heat_map
from dsv4.evals.kept import KeptAnswer, read_run, read_settings
from dsv4.evals.suite import Graded, Suite

NO_COUNTS = "the server sends no usage counts"
BASE = "base model"  # in the place of the mode of a published figure


def result_of(
    suite: Suite,
    identity: Mapping[str, Any],
    answers: Sequence[KeptAnswer],
    expected: int,
    *,
    problems: Sequence[str] = (),
    facts: Mapping[str, Any],
    against: Path | None = None,
) -> dict[str, Any]:
    """The result of the answers of a run. expected: how many it should have. problems: why others are missing. facts:
    of the endpoint and the time. against: a run to compare with. Raises ValueError where it cannot be compared."""
    graded = [kept.graded for kept in answers]
    found: dict[str, Any] = {
        **identity,
        "about": suite.about,
        "unit": suite.unit,
        "answers": len(graded),
        "missing": expected - len(graded),
        "problems": _counted(problems),
        "facts": dict(facts),
        "published": [asdict(one) for one in suite.published if one.mode in ("", identity["mode"])],
    }
    if not graded:
        return found
    found["score"] = _mean(graded)
    groups = statistics.grouped(graded, lambda one: one.group)
    if len(groups) > 1:
        found["groups"] = {name: _mean(some) for name, some in groups.items()}
    found["figures"] = statistics.figures(graded)
    if suite.summary is not None:
        try:
            found["figures"] |= dict(suite.summary(graded))
        except ValueError as error:  # a part of the items may not have what a summary needs
            found["facts"]["no further figures"] = str(error)
    if suite.axes is not None:
        found["map"] = heat_map(graded, suite.axes)
    found["tokens"] = _tokens(graded)
    if against is not None:
        found["comparison"] = _compared(identity, graded, against)
    return found


def _tokens(graded: Sequence[Graded]) -> dict[str, Any]:
    """Sums and the mean are of the prompts and answers that the server counted (`prompts_counted`, `counted`: some
    servers count only one of the two); None if there are none."""
    prompts = [one.prompt_tokens for one in graded if one.prompt_tokens is not None]
    answers = [one.tokens for one in graded if one.tokens is not None]
    return {
        "prompt": sum(prompts) if prompts else None,
        "answer": sum(answers) if answers else None,
        "answer_mean": sum(answers) / len(answers) if answers else None,
        "counted": len(answers),
        "prompts_counted": len(prompts),
        "cut": sum(one.finish == "length" for one in graded) / len(graded),
    }


def _mean(graded: Sequence[Graded]) -> dict[str, Any]:
    """In percent."""
    found = statistics.mean(graded)
    return {**asdict(found), "value": 100 * found.value, "error": _percent(found.error)}


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def check_comparable(identity: Mapping[str, Any], against: Path) -> None:
    """Raise ValueError where `against` has no run, or one of other questions. identity: as far as it is known."""
    _check_questions(identity, read_settings(against), against)


def _check_questions(identity: Mapping[str, Any], other: Mapping[str, Any], against: Path) -> None:
    for name in ("suite", "data", "grader"):
        if name in identity and other.get(name) != identity[name]:
            raise ValueError(f"--compare {against}: its {name} is {other.get(name)}, not {identity[name]}")


def _compared(identity: Mapping[str, Any], graded: Sequence[Graded], against: Path) -> dict[str, Any]:
    other, answers = read_run(against)
    _check_questions(identity, other, against)
    paired = statistics.compare(graded, [kept.graded for kept in answers])
    named = {"run": str(against), "model": other["model"], "mode": other["mode"]}
    return {**named, **asdict(paired), "difference": 100 * paired.difference, "error": _percent(paired.error)}


def _counted(problems: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for problem in problems:
        line = (problem.splitlines() or ["without a message"])[0][:300]
        found[line] = found.get(line, 0) + 1
    return found


def shown(mean: Mapping[str, Any]) -> str:
    """`71.2 ± 3.1`, or `71.2` where no error is known."""
    error = mean["error"]
    return f"{mean['value']:.1f}" + ("" if error is None else f" ± {error:.1f}")


def lines(result: Mapping[str, Any]) -> list[str]:
    """The result for a terminal."""
    if "score" not in result:
        return ["no answer", *_missing(result)]
    score = result["score"]
    unit = "%" if result["unit"] == "%" else f" {result['unit']}"
    found = [
        f"{result['suite']}, {result['mode']}: {shown(score)}{unit} "
        f"({score['items']:,} items x {result['samples']}, standard error over {score['clusters']:,} clusters)"
    ]
    found += [
        f"  {name or '(no group)'}: {shown(mean)} ({mean['items']:,})"
        for name, mean in result.get("groups", {}).items()
    ]
    found += [f"  {name}: {value:.4g}" for name, value in result["figures"].items()]
    if "no further figures" in result["facts"]:
        found.append(f"  no further figures: {result['facts']['no further figures']}")
    found.append(f"  {_length(result)}, {100 * result['tokens']['cut']:.1f} % cut by the limit")
    for one in result["published"]:
        setting = f"; {one['setting']}" if one["setting"] else ""
        found.append(f"  published: {one['model']}, {one['mode'] or BASE}: {one['value']:g} ({one['source']}{setting})")
    if "comparison" in result:
        found.append(f"  {comparison(result['comparison'])}")
    return found + _missing(result)


def _length(result: Mapping[str, Any]) -> str:
    tokens = result["tokens"]
    if tokens["answer_mean"] is None:
        return f"tokens of an answer unknown ({NO_COUNTS})"
    text = f"{tokens['answer_mean']:,.0f} tokens an answer"
    if tokens["counted"] == result["answers"]:
        return text
    return f"{text} ({tokens['counted']:,} of {result['answers']:,} answers came with counts)"


def comparison(found: Mapping[str, Any]) -> str:
    """The comparison in a sentence."""
    error = "" if found["error"] is None else f" ± {found['error']:.1f}"
    chance = "" if found["probability"] is None else f", p = {found['probability']:.3g} ({found['test']})"
    return (
        f"against {found['run']} ({found['model']}, {found['mode']}): {found['difference']:+.1f}{error} on "
        f"{found['items']:,} shared items, better in {found['wins']:,}, worse in {found['losses']:,}{chance}"
    )


def _missing(result: Mapping[str, Any]) -> list[str]:
    if not result["missing"]:
        return []
    return [f"{result['missing']:,} answers are missing", *_times(result["problems"])]


def reasons(problems: Sequence[str]) -> list[str]:
    """Why answers could not be had, for a terminal."""
    return _times(_counted(problems))


def _times(problems: Mapping[str, int]) -> list[str]:
    return [f"  {times} times: {reason}" for reason, times in problems.items()]
