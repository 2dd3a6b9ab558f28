"""What is shown of a run: counts of tokens that a server does not send, published figures, the exit code."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dsv4.cli.__main__ import make_app
from dsv4.cli.eval import BELOW, MISSING, finish
from dsv4.cli.eval_flags import OutcomeFlags
from dsv4.evals.kept import REPORT, RESULT, KeptAnswer, RunFolder
from dsv4.evals.page import page
from dsv4.evals.registry import suite_named
from dsv4.evals.result import lines, result_of
from dsv4.evals.run import EvalPlan, EvalProgress, EvalSettings, TokenPrice, estimate, make_plan
from dsv4.evals.suite import Graded, Mode
from dsv4.evals.suites import mrcr

IDENTITY: dict[str, Any] = {
    "suite": "x", "model": "m", "data": {"origin": "o", "revision": "", "sha256": {}},
    "samples": 1, "seed": 0, "temperature": 1.0, "max_tokens": 9, "grader": "rule",
}  # fmt: skip


def kept(*counts: int | None) -> list[KeptAnswer]:
    return [
        KeptAnswer(Graded(f"q{number}", 0, 1.0, prompt_tokens=count, tokens=count))
        for number, count in enumerate(counts)
    ]


def shown(*counts: int | None, suite: str = "gsm8k", mode: Mode = Mode.HIGH) -> tuple[dict[str, Any], str, str]:
    """The result, its lines and its page."""
    answers = kept(*counts)
    result = result_of(suite_named(suite), IDENTITY | {"mode": mode.value}, answers, len(answers), facts={})
    return result, "\n".join(lines(result)), page(result, answers)


def test_unknown_counts_of_tokens_are_shown_as_unknown() -> None:
    result, text, html = shown(None, None)
    assert result["tokens"] == {
        "prompt": None,
        "answer": None,
        "answer_mean": None,
        "counted": 0,
        "prompts_counted": 0,
        "cut": 0,
    }
    assert "tokens of an answer unknown (the server sends no usage counts)" in text
    assert "0 tokens" not in text + html
    assert html.count("tokens unknown, ") == 2
    assert "Tokens are unknown" in html


def test_counts_of_some_answers_are_those_of_these() -> None:
    result, text, html = shown(30, None, 50, None)
    assert (result["tokens"]["answer_mean"], result["tokens"]["answer"], result["tokens"]["counted"]) == (40, 80, 2)
    assert "40 tokens an answer (2 of 4 answers came with counts)" in text
    assert "answers with usage counts" in html
    assert "came with counts" not in shown(30, 50)[1]


def only(name: str, *counts: int) -> list[KeptAnswer]:
    """Answers of a server that counts either prompts or answers."""
    return [KeptAnswer(Graded(f"q{number}", 0, 1.0, **{name: count})) for number, count in enumerate(counts)]


def test_a_server_that_counts_only_answers() -> None:
    answers = only("tokens", 30, 50)
    result = result_of(suite_named("gsm8k"), IDENTITY | {"mode": "high"}, answers, 2, facts={})
    tokens, html = result["tokens"], page(result, answers)
    assert (tokens["prompt"], tokens["prompts_counted"], tokens["answer"], tokens["counted"]) == (None, 0, 80, 2)
    text = "\n".join(lines(result))
    assert "40 tokens an answer, " in text
    assert "came with counts" not in text
    assert "Tokens are unknown" not in html
    assert "<td>prompt tokens in all</td><td class=number>unknown</td>" in html


@pytest.mark.parametrize(
    ("name", "each"), [("tokens", "unknown prompt + 40"), ("prompt_tokens", "40 prompt + unknown")]
)
def test_an_estimate_from_counts_of_one_kind(name: str, each: str) -> None:
    progress = EvalProgress(10, 0)
    for answer in only(name, 30, 50):
        progress.add(answer)
    assert (progress.rate is None) == (name != "tokens")
    assert f"8 more x ({each} answer) tokens, " in estimate(progress, None)
    assert estimate(progress, TokenPrice(1, 2)).endswith("cost unknown: the server counts only one of the two")
    assert "cost" not in estimate(progress, None)


@pytest.mark.parametrize("price", [None, TokenPrice(1000, 2000)])
def test_an_estimate_without_counts_has_no_cost(price: TokenPrice | None) -> None:
    progress = EvalProgress(10, 0)
    for answer in kept(None, None):
        progress.add(answer)
    text = estimate(progress, price)
    assert "8 more, " in text
    assert text.endswith(
        f"{'tokens' if price is None else 'tokens and cost'} unknown: the server sends no usage counts"
    )
    for answer in kept(10, None):
        progress.add(answer)
    assert "6 more x (10 prompt + 10 answer) tokens" in estimate(progress, price)
    assert progress.rate is None


def test_bins_of_tokens_need_counts() -> None:
    assert mrcr.SUITE.summary is not None
    with pytest.raises(ValueError, match="no answer came with usage counts"):
        mrcr.SUITE.summary([Graded("q", 0, 1.0)])
    known = Graded("p", 0, 0.5, prompt_tokens=9000, tokens=10)
    for unknown in (Graded("q", 0, 1.0), Graded("q", 0, 1.0, tokens=10), Graded("q", 0, 1.0, prompt_tokens=10)):
        assert mrcr.SUITE.summary([known, unknown]) == {"to 16K": 0.5, "answers of unknown length": 1}
    assert mrcr.SUITE.summary([]) == {}


@pytest.mark.parametrize("mode", Mode)
def test_published_figures_are_those_of_the_mode_of_the_run(mode: Mode) -> None:
    suite = suite_named("gpqa_diamond")
    assert len({one.mode for one in suite.published}) == 3
    result, text, html = shown(9, suite=suite.name, mode=mode)
    assert result["published"]
    assert {one["mode"] for one in result["published"]} == {mode.value}
    others = [f"{one.value:g} ({one.source}" for one in suite.published if one.mode != mode.value]
    assert not any(other in text for other in others)
    assert f"V4-Pro, {mode.value}: " in text
    assert all(f"<td>{other.value}</td>" not in html for other in Mode if other is not mode)


def test_figures_of_base_models_are_named_so() -> None:
    _, text, html = shown(9, suite="gsm8k")
    assert ", base model: 92.6 (" in text
    assert "base model" in html


def ended(tmp_path: Path, capsys: pytest.CaptureFixture[str], *values: float, **outcome: Any) -> tuple[int, str]:
    """The exit code and the output of a run of two questions with answers of these values."""
    plan: EvalPlan = make_plan(EvalSettings(suite_named("gsm8k"), place="stand-in", limit=2))
    identity = plan.identity("m", "rule")
    folder = RunFolder(tmp_path, identity, plan.items)
    for (item, sample), value in zip(plan.wanted, values, strict=False):
        folder.add(KeptAnswer(Graded(item.id, sample, value)))
    problems = ["http://127.0.0.1:9: given up"] * (2 - len(values))
    code = finish(plan, folder, identity, problems, {}, OutcomeFlags(**outcome))
    assert json.loads((tmp_path / RESULT).read_text())["missing"] == 2 - len(values)
    assert (tmp_path / REPORT).is_file()
    return code, capsys.readouterr().out


def test_the_exit_code_tells_missing_answers_from_low_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len({0, 1, 2, MISSING, BELOW}) == 5, "1 and 2 are those of every command"
    assert ended(tmp_path / "a", capsys, 1.0, 0.0)[0] == 0
    assert ended(tmp_path / "b", capsys, 1.0, 0.0, least=50)[0] == 0
    code, text = ended(tmp_path / "c", capsys, 1.0, 0.0, least=50.5)
    assert (code, "50.0 is below --least 50.5" in text) == (BELOW, True)
    code, text = ended(tmp_path / "d", capsys, 0.0, least=50)
    assert code == MISSING
    assert "1 times: http://127.0.0.1:9: given up" in text
    assert f"1 of 2 answers are kept in {tmp_path / 'd'}; the same command asks only for the other ones" in text
    assert ended(tmp_path / "e", capsys)[0] == MISSING


def test_the_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(SystemExit):
        make_app("eval")(["eval", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"{MISSING} questions could not be answered, {BELOW} all are answered and the score is below --least" in text
