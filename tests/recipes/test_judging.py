"""The example of a policy that judges itself: its items, and that its recipes hold together."""

import asyncio
import random
import re
import tomllib
from collections.abc import Sequence

import pytest

from dsv4.cli.rollout_start import check_prompts, environments_of, prompt_source
from dsv4.encoding import Tokenizer
from dsv4.generation import SamplingParams
from dsv4.posttraining.judge import read_verdict
from dsv4.posttraining.recipe import GrpoRecipe
from dsv4.posttraining.to_come import EngineToCome
from dsv4.posttraining.verifiers import text
from dsv4.testing.stub import StubGenerator
from dsv4.training.documents import function_of
from dsv4.training.recipe import Recipe
from recipes.judging.letters import FAULTS, JUDGED, document, judgement, prompt, question
from recipes.judging.measure import Measured, kind_of, share
from tests.conftest import ROOT

FOLDER = ROOT / "recipes" / "judging"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(ROOT / "models" / "nano")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_wrong_by_the_rule_and_the_judge_is_shown_so(fault: str) -> None:
    rng = random.Random(1)
    for _ in range(200):
        _, right = question(rng)
        wrong = FAULTS[fault](rng, right)
        assert text(" ".join(wrong), " ".join(right)) == 0.0
        assert read_verdict(judgement(right, wrong)) == 0.0
        assert read_verdict(judgement(right, right)) == 1.0
        assert kind_of(" ".join(wrong), right) != "right"
        assert kind_of(" ".join(right), right) == "right"


def test_a_judgement_compares_every_place() -> None:
    assert judgement("bdk", "bdk") == "b b same d d same k k same\nVerdict: 10"
    assert judgement("bdk", "bxd") == "b b same d x no k d no\nVerdict: 0"
    assert judgement("bdk", "bd") == "b b same d d same k - no\nVerdict: 0"
    assert judgement("bd", "bdk") == "b b same d d same - k no\nVerdict: 0"


def test_what_is_held_out_is_never_trained_on() -> None:
    rng = random.Random(2)
    held = {tuple(question(rng, held_out=True)[1]) for _ in range(200)}
    assert not held & {tuple(question(rng)[1]) for _ in range(2000)}


def test_documents_learn_what_is_said_alone(tokenizer: Tokenizer) -> None:
    rng, judged = random.Random(3), 0
    for _ in range(50):
        made = document(rng, tokenizer)
        said = tokenizer.decode([t for t, learned in zip(made.tokens, made.learn or [], strict=True) if learned])
        assert "Sort" not in said
        judged += "Verdict: " in said
    assert 10 < judged < 40
    assert "twice" not in JUDGED, "the page says that the judge's first items lack this fault"


@pytest.mark.parametrize("changes", [(), ("prompts.options.judged=false",), ("environment.options.taught=0",)])
def test_the_recipe_and_its_controls_take_their_prompts(tokenizer: Tokenizer, changes: tuple[str, ...]) -> None:
    recipe = GrpoRecipe.from_file(FOLDER / "chain" / "joint.toml", changes)
    prompts = prompt_source(recipe.prompts, tokenizer, recipe.seed, "prompts").batch(0, 40)
    check_prompts(recipe, prompts, environments_of(recipe, tokenizer, EngineToCome()))
    known = sum("verifier" in each.task for each in prompts)
    assert known == 40 if changes == ("prompts.options.judged=false",) else 0 < known < 40
    longest = max(len(document(random.Random(i), tokenizer).tokens) for i in range(200))
    assert longest < recipe.rollouts.context, "the judge's prompt and its verdict"


def test_the_stage_between_goes_on_with_the_base_and_joins_the_next() -> None:
    raw, joint = (tomllib.loads((FOLDER / "chain" / name).read_text()) for name in ("further.toml", "joint.toml"))
    base = Recipe.from_file(FOLDER / "base.toml")
    assert raw.pop("init") == f"runs/judging/{base.name.removeprefix('judging-')}"
    made = Recipe.from_dict(
        raw | {"model": base.to_dict()["model"], "data": raw["data"] | {"tokenizer": base.data.tokenizer}}
    )
    for source in (*base.data.sources, *made.data.sources):
        assert function_of(source) is document
    assert joint["init"] == f"runs/judging/{made.name.removeprefix('judging-')}"


def test_only_a_share_of_the_questions_has_a_truth(tokenizer: Tokenizer) -> None:
    rng = random.Random(4)
    assert "verifier" not in prompt(rng, tokenizer, known=0.0).task
    assert prompt(rng, tokenizer, judged=False, known=0.0).task["verifier"] == "text"


def sorts_and_judges(tokenizer: Tokenizer, *, sees: bool) -> StubGenerator:
    """Leaves out the last letter of answers that begin with a to m. sees: its verdicts are right; else all pass."""

    def script(tokens: Sequence[int], params: SamplingParams) -> list[int]:
        asked = tokenizer.decode(list(tokens)).split("Sort ")[1]
        right = sorted(re.split(r"[\n<]", asked)[0].split())
        if "# Answer to judge" in asked:
            given = re.split(r"<", asked.split("# Answer to judge\n")[1])[0].split()
            said = judgement(right, given if sees else right)
        else:
            said = " ".join(right[:-1] if right[0] < "n" else right)
        return [*tokenizer.encode_text(said), tokenizer.eos_id]

    return StubGenerator(script)


@pytest.mark.parametrize("sees", [True, False])
def test_what_the_judge_lets_through_is_measured(tokenizer: Tokenizer, sees: bool) -> None:
    policy = sorts_and_judges(tokenizer, sees=sees)
    found = asyncio.run(Measured(policy, tokenizer, 80).figures())
    true, wrong = found["sampled"], found["own_wrong"]
    assert found["greedy"] == true
    assert 0 < found["kinds"]["right"] < 80
    assert found["passed"] == (true if sees else (100.0, 0.0)), "what it lets through beyond what is right is the cheat"
    assert wrong == ((100.0 if sees else 0.0), 0.0, 80 - found["kinds"]["right"])
    assert found["own_right"][0] == found["verdicts"]["right"][0] == 100.0
    assert {found["verdicts"][fault][0] for fault in FAULTS} == {100.0 if sees else 0.0}


def test_shares_have_their_standard_error() -> None:
    assert share([True, False, True, False]) == (50.0, 25.0)
