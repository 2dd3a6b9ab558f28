"""The programs of docs/environments.md, as they stand there."""

import ast
import asyncio
import importlib
import random
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsv4.cli.rollout_start import Options, check_prompts, environments_of, run_recipe
from dsv4.encoding import Tokenizer
from dsv4.posttraining.chat import ToolError
from dsv4.posttraining.grpo_run import GrpoRun
from dsv4.posttraining.prompts import read_prompts
from dsv4.posttraining.recipe import GrpoRecipe
from dsv4.posttraining.to_come import EngineToCome
from dsv4.posttraining.verifiers import VERIFIERS, check_expected, reward
from tests.cli.test_sft import write_base
from tests.conftest import ROOT
from tests.posttraining.killed_runs import lines
from tests.posttraining.runs import recipe

PAGE = (ROOT / "docs" / "environments.md").read_text()
BLOCKS = {
    match[2]: match[3]
    for match in re.finditer(r"^```(python|toml)\n# (\w+\.\w+)(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with all files of the page."""
    for name, text in BLOCKS.items():
        (tmp_path / name).write_text(f"#{text}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    importlib.invalidate_caches()
    yield tmp_path
    for name in BLOCKS:
        sys.modules.pop(name.partition(".")[0], None)


def test_prompts_and_a_verifier_of_ones_own(folder: Path, tokenizer: Tokenizer) -> None:
    raw = tomllib.loads((folder / "mine.toml").read_text())
    raw |= {"init": str(write_base(folder / "base")), "steps": 1, "rollouts": {"prompts": 2, "group": 2}}
    made = GrpoRecipe.from_dict(raw)
    run_recipe(made, folder / "run", Options(live=-1, track=None, export="none", steps=None, threads=1), GrpoRun)
    (line,) = lines(folder / "run")
    assert line["broken"] == 0
    mine = importlib.import_module("mine")
    prompt = mine.prompt(random.Random(0), tokenizer)
    assert mine.said(f"I say {prompt.task['answer'][0]}", prompt.task["answer"]) == 1 / len(prompt.task["answer"])


def test_tools(folder: Path, tokenizer: Tokenizer) -> None:
    stock = importlib.import_module("stock")
    prompt = stock.prompt(random.Random(0), tokenizer)
    stock.environment(tokenizer).start(prompt)
    assert stock.lookup({"thing": "pens"}) == "12"
    with pytest.raises(ToolError, match="there is no hats; known are pens, cups"):
        stock.lookup({"thing": "hats"})
    assert asyncio.run(stock.PYTHON.run({"code": "print(6 * 7)"})) == "42"


def test_tasks_of_reasoning_gym(folder: Path, tokenizer: Tokenizer) -> None:
    pytest.importorskip("reasoning_gym")
    tasks = importlib.import_module("gym_tasks")
    prompt = tasks.prompt(random.Random(0), tokenizer)
    tasks.environment(tokenizer).start(prompt)


def test_the_page_has_every_verifier_and_an_answer_of_its_form() -> None:
    table = PAGE.split("| verifier | gives 1 where | `answer` |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[2:]]
    shown = {name.strip("`"): ast.literal_eval(answer) for name, _, answer in rows}
    assert shown.keys() == VERIFIERS.keys()
    for name, answer in shown.items():
        check_expected(name, answer)
    assert reward("expression", "(3 + 4) * 6", shown["expression"]) == 1


def test_rubrics(tmp_path: Path, tokenizer: Tokenizer) -> None:
    section = PAGE.split("## The policy as its own judge")[1]
    prompts, settings = (part.split("\n", 1)[1] for part in section.split("```")[1:4:2])
    (tmp_path / "prompts.jsonl").write_text(prompts)
    made = recipe(**tomllib.loads(settings))
    environments = environments_of(made, tokenizer, EngineToCome())
    read = read_prompts(tmp_path / "prompts.jsonl", tokenizer)
    assert [sorted(prompt.task) for prompt in read] == [
        ["messages", "rubric"],
        ["answer", "messages", "rubric", "verifier"],
    ]
    check_prompts(made, read, environments)
