"""Grading: full rows for a model that says what the items say, empty ones for a model that says nothing right."""

import asyncio
import json
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from dsv4.cli.listener import open_listener
from dsv4.encoding import Tokenizer
from dsv4.generation import SamplingParams
from dsv4.posttraining.types import Effort
from dsv4.server import Settings, create_app
from dsv4.testing.stub import StubGenerator
from dsv4.verify.answer import Call
from recipes.nano.grade import grade, read_needles, read_rows, table
from recipes.nano.grading import needles, sheet, tools
from recipes.nano.grading.abilities import BARS, Ability, abilities, composite, judged
from recipes.nano.grading.figures import Outcome, figures
from recipes.nano.grading.plan import Plan, row_names
from recipes.nano.grading.run import Figures, Grading, Progress
from recipes.nano.grading.server import served
from recipes.nano.items.item import Item, draw
from recipes.nano.items.mix import Mode, encode, makers, messages_of, said
from recipes.nano.items.tools import make_known
from tests.conftest import ROOT

FOLDER = ROOT / "models" / "nano"
MODES: dict[Effort, Mode] = {Effort.NON_THINK: "chat", Effort.HIGH: "thinking", Effort.MAX: "max"}
PLAN = Plan(items=12, pass_items=4, concurrent=8)
Script = Callable[[Sequence[int], SamplingParams], Sequence[int]]


@pytest.fixture(scope="module")
def codec() -> Tokenizer:
    return Tokenizer.load(FOLDER)


def turns_of(item: Item, effort: Effort, codec: Tokenizer) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """Every prompt of an item with the turn that training has for it."""
    messages = messages_of(item, effort is Effort.MAX)
    for end in range(1, len(messages) + 1):
        if messages[end - 1]["role"] != "assistant" or messages[end - 1].get("task") == "title":
            continue
        tokens = encode(codec, messages[:end], MODES[effort])
        learned = said(tokens, codec)
        start = len(tokens) - 1
        while start and learned[start - 1]:
            start -= 1
        yield tuple(tokens[:start]), tokens[start:]


def script_of(items: Sequence[Item], efforts: Sequence[Effort], codec: Tokenizer) -> Script:
    """Says what the items say; to any other prompt nothing."""
    answers = {prompt: turn for item in items for effort in efforts for prompt, turn in turns_of(item, effort, codec)}

    def script(prompt: Sequence[int], params: SamplingParams) -> Sequence[int]:
        return answers.get(tuple(prompt), [codec.eos_id])

    return script


@contextmanager
def stub_server(script: Script, codec: Tokenizer) -> Iterator[str]:
    app = create_app(
        StubGenerator(script, 1 << 16), codec, model_name="nano", settings=Settings(any_model=True, free_sampling=True)
    )
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    with open_listener("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def graded(plan: Plan, script: Script, codec: Tokenizer, file: Path) -> Figures:
    kept = Figures(file, plan, "stub")

    async def run(url: str) -> None:
        grading = Grading(url, plan, kept, progress)
        await grading.abilities()
        await grading.close()

    with stub_server(script, codec) as url, Progress(100) as progress:
        asyncio.run(run(url))
    return kept


@pytest.mark.parametrize("ability", abilities(), ids=lambda ability: ability.name)
def test_the_items_own_answers_are_right_through_the_server(ability: Ability, codec: Tokenizer, tmp_path: Path) -> None:
    plan = Plan(items=14, pass_items=4, concurrent=8, only=(ability.name,))
    items = plan.draw(ability)
    assert all(item.held_out for item in items)
    # the service shows no thought of a finished answer, so a title is asked for as in a conversation without thoughts
    shown = (*ability.efforts, Effort.NON_THINK) if ability.name == "quick instructions" else ability.efforts
    kept = graded(plan, script_of(items, shown, codec), codec, tmp_path / "figures.json")
    for effort in ability.efforts:
        row = kept.rows[ability.name][effort]
        assert (row["n"], row["mean"], row["cut"]) == (plan.count(ability), 1.0, 0.0)
        assert row["tokens"] > 0
    if ability.play == "tools":
        counts = kept.rows["tools"]["high"]["counts"]
        assert counts["calls"] == counts["valid"] > 0
        assert counts["malformed"] == 0
        kinds = kept.rows["tools"]["high"]["kinds"]
        assert {kind: kinds[kind]["n"] for kind in ("openai", "anthropic")} == {"openai": 7, "anthropic": 7}
    wrong = graded(plan, lambda prompt, params: [codec.eos_id], codec, tmp_path / "wrong.json")
    assert [row["mean"] for row in wrong.rows[ability.name].values()] == [0.0] * len(ability.efforts)


def test_every_kind_of_tool_item_is_asked_through_both_sdks(
    codec: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []
    for sdk in ("openai", "anthropic"):
        monkeypatch.setattr(
            Grading, f"_{sdk}_tools", lambda self, item, effort, sdk=sdk: asked.append((item.task, sdk))
        )
    monkeypatch.setattr("recipes.nano.grading.tools.play", _nothing)
    graded(Plan(items=14, only=("tools",)), lambda prompt, params: [codec.eos_id], codec, tmp_path / "figures.json")
    assert len(set(asked)) == 2 * len({task for task, _ in asked})


async def _nothing(item: Item, dialogue: Any) -> Outcome:
    return Outcome(item.task, 0.0, 0, False, {"calls": 0, "valid": 0, "malformed": 0, "turns": 0})


def test_one_right_answer_of_eight_passes(codec: Tokenizer, tmp_path: Path) -> None:
    plan = Plan(items=1, pass_items=1, only=("countdown, pass@8",))
    (ability,) = plan.abilities()
    right = script_of(plan.draw(ability), ability.efforts, codec)
    kept = graded(plan, lambda p, s: right(p, s) if s.seed == 5 else [codec.eos_id], codec, tmp_path / "figures.json")
    assert kept.rows["countdown, pass@8"]["high"]["mean"] == 1.0


def test_a_grading_goes_on_with_what_is_missing(codec: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    plan = Plan(items=2, only=("state",))
    graded(plan, lambda prompt, params: [codec.eos_id], codec, file)
    asked: list[int] = []

    def script(prompt: Sequence[int], params: SamplingParams) -> Sequence[int]:
        asked.append(len(prompt))
        return [codec.eos_id]

    graded(plan, script, codec, file)
    assert not asked
    assert Figures(file, Plan(items=3), "stub").rows == {}  # other settings: nothing is kept
    assert Figures(file, plan, "another").rows == {}


@pytest.mark.parametrize(
    ("name", "arguments", "fault"),
    [
        ("", "{}", "there is no tool "),
        (None, "{", "no JSON"),
        (None, "[]", "no object"),
        (None, '{"surely_not_there": 1}', "missing|no argument"),
    ],
)
def test_invalid_calls_are_counted(name: str | None, arguments: str, fault: str) -> None:
    item = draw(lambda rng: make_known(rng, turns=1), random.Random(1))
    tool = item.tools[0]["function"]["name"] if name is None else name
    found = tools.fault_of(item, Call("1", tool, arguments))
    assert found is not None
    assert re.search(fault, found)


def test_wrong_types_and_values_are_faults() -> None:
    rng, seen = random.Random(3), set[str]()
    for _ in range(200):
        item = draw(makers()["tools.unseen"], rng)
        call = next(c for m in item.messages for c in m.get("tool_calls", ()))
        function = call["function"]
        assert tools.fault_of(item, Call("1", function["name"], function["arguments"])) is None
        schema = next(t["function"] for t in item.tools if t["function"]["name"] == function["name"])["parameters"]
        for argument, about in schema["properties"].items():
            given = json.loads(function["arguments"]) | {argument: [] if about["type"] != "boolean" else 1}
            assert tools.fault_of(item, Call("1", function["name"], json.dumps(given)))
            seen.add("enum" if "enum" in about else about["type"])
    assert seen == {"string", "integer", "number", "boolean", "enum"}


def test_malformed_markup_is_counted(codec: Tokenizer) -> None:
    item = draw(lambda rng: make_known(rng, turns=1), random.Random(1))
    broken = codec.encode_text("</think>") + codec.encode_text("\n\n<｜DSML｜tool_calls>\nbroken", trusted=True)

    async def run(url: str) -> Outcome:
        grading = Grading(url, PLAN, Figures(Path("nowhere"), PLAN, "stub"), progress)
        try:
            return await tools.play(item, grading._openai_tools(item, Effort.NON_THINK))
        finally:
            await grading.close()

    with stub_server(lambda prompt, params: [*broken, codec.eos_id], codec) as url, Progress(1) as progress:
        outcome = asyncio.run(run(url))
    assert (outcome.counts["malformed"], outcome.counts["calls"], outcome.score) == (1, 0, 0.0)


def test_needles_ask_one_text_several_times(codec: Tokenizer, tmp_path: Path) -> None:
    plan = Plan(needles={1024: 8}, only=("needles",))
    rng, items = random.Random(f"{plan.seed}/needles/1024"), []
    for _ in range(4):
        items.append(needles.text_of(rng, 1024, codec))
    sizes = [len(codec.encode_text(item.messages[0]["content"])) for item in items]
    assert all(900 <= size <= 1100 for size in sizes)
    kept = Figures(tmp_path / "figures.json", plan, "stub")

    async def run(url: str) -> None:
        grading = Grading(url, plan, kept, progress)
        await grading.needles(1024, 8, codec)
        await grading.close()

    with stub_server(script_of(items, [Effort.HIGH], codec), codec) as url, Progress(8) as progress:
        asyncio.run(run(url))
    row = kept.rows["needles"]["1024"]
    assert row["n"] >= 8
    assert row["mean"] == 1.0


def test_the_sheet_shows_every_wording(codec: Tokenizer, tmp_path: Path) -> None:
    plan = Plan(only=("small talk",))
    kept, page = Figures(tmp_path / "figures.json", plan, "stub"), tmp_path / "sheet.md"
    answer = codec.encode_text("Hello! How can I help you?")

    async def run(url: str) -> None:
        grading = Grading(url, plan, kept, progress)
        await grading.small_talk(page, "stub")
        await grading.close()

    script: Script = lambda prompt, params: [*codec.encode_text("</think>", trusted=True), *answer, codec.eos_id]  # noqa: E731
    with stub_server(script, codec) as url, Progress(100) as progress:
        asyncio.run(run(url))
    text = page.read_text()
    assert all(wording.text.replace("|", "\\|") in text for wording in sheet.wordings())
    assert text.count("Hello! How can I help you?") == len(sheet.wordings()) == 100
    greetings = [wording for wording in sheet.wordings() if wording.intent == "greeting"]
    assert kept.rows["small talk"]["high"]["kinds"]["greeting"]["mean"] == 1.0
    assert kept.rows["small talk"]["high"]["mean"] == pytest.approx(len(greetings) / 100)


def test_figures_and_bars() -> None:
    row = figures([Outcome("a", 1.0, 10), Outcome("a", 0.0, 30, cut=True), Outcome("b", 1.0, 20)])
    assert (row["n"], row["tokens"], row["kinds"]["a"]["mean"]) == (3, 20, 0.5)
    assert row["mean"] == pytest.approx(2 / 3)
    assert row["error"] == pytest.approx((1 / 3) ** 0.5 / 3**0.5)
    rows = {"state": {"high": {**row, "mean": 0.985}, "non-think": {**row, "mean": 0.06}}}
    assert [judged(bar, rows) for bar in BARS if bar.row == "state"] == [True, False]
    assert judged(BARS[0], rows) is None
    assert "≥ 98: reached" in table(rows)
    assert "≤ 5: missed" in table(rows)


def test_composite_items_are_those_of_several_steps() -> None:
    rng = random.Random(0)
    for _ in range(200):
        item = draw(makers()["arithmetic.sum"], rng)
        assert bool(composite(item)) == (item.level >= 1)
    assert composite(draw(makers()["problems.problem"], rng))
    assert not composite(draw(makers()["ordering.comparison"], rng))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": 0}, "items must be at least 1"),
        ({"needles": {100: 1}}, "lengths must be in"),
        ({"needle_minutes": 0}, "needle_minutes must be positive"),
        ({"only": ("sums",)}, "no row sums; there are arithmetic"),
    ],
)
def test_a_wrong_plan_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(**options)


def test_the_rows_of_the_command_line_may_have_commas() -> None:
    names = tuple(row_names())
    assert read_rows(",".join(names)) == names
    assert read_rows("") == ()


def test_needle_counts_are_read() -> None:
    assert read_needles("4096:200,65536:48") == {4096: 200, 65536: 48}
    with pytest.raises(ValueError, match="LENGTH:QUESTIONS"):
        read_needles("4096")


def test_a_folder_is_graded_through_its_own_server(tmp_path: Path) -> None:
    plan = Plan(items=2, only=("quick instructions", "english"), concurrent=4)
    rows = grade(FOLDER, tmp_path, plan)
    assert rows["quick instructions"]["high"]["n"] == 2
    assert 0.1 < rows["english"]["stories"]["bits_per_byte"] < 8
    assert json.loads((tmp_path / "accuracy.json").read_text())["rows"] == rows


def test_a_server_that_does_not_start_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="did not start"), served(tmp_path):
        pass


def test_the_suite_of_dsv4_eval_needs_no_client() -> None:
    code = "import sys; sys.modules['anthropic'] = sys.modules['openai'] = None; import recipes.nano.suite"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
