"""`dsv4 export`: the table of published recipes, what fits, and the printed command."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from dsv4.backends.sglang import Sglang
from dsv4.backends.vllm import Vllm
from dsv4.checkpoint import save_checkpoint
from dsv4.checkpoint.names import LAYOUTS
from dsv4.cli.export import export
from dsv4.config.released import SHAPES, released_config
from dsv4.generation import RequestOptions, SamplingParams
from dsv4.planning.files import ModelFiles
from dsv4.planning.launch import ENGINES, choose, launch, parse_gpus, recipes, shape_of
from dsv4.testing.tiny import tiny_config, tiny_model


@pytest.fixture(scope="module")
def models() -> dict[str, ModelFiles]:
    return {name: ModelFiles.of_config(name, released_config(name)) for name in SHAPES}


def test_every_recipe_fits_its_gpus_and_is_a_command(models: dict[str, ModelFiles]) -> None:
    rows = recipes()
    assert {row.engine for row in rows} == set(ENGINES)
    for row in rows:
        made = launch(models[row.model], "/models of mine/x", row, row.gpus)
        assert made.fits, (row.source, row.gpu, made.need, made.room)
        words = shlex.split(" ".join(made.lines))
        assert "/models of mine/x" in words
        # the address that the printed `dsv4 serve --engine` names
        assert (words[-2:] == ["--port", "8001"]) == (row.engine != "dynamo")
        grammars = [word for word in words if word in ("--structured-outputs-config.backend", "--grammar-backend")]
        assert len(grammars) == (row.engine != "dynamo")
        assert "{model}" not in " ".join(words)
        assert made.copies == 1
        assert row.source.startswith("github.com/")
        assert len(row.commit) == 12
        for word in words:
            if word.startswith("{"):
                json.loads(word)
        assert any("55927" in known.source for known in made.conflicts)


def test_what_a_gpu_holds(models: dict[str, ModelFiles]) -> None:
    split, _ = choose("sglang", "flash", (4, "H200"), "latency")
    whole, _ = choose("vllm", "flash", (4, "H200"), "throughput")
    assert (split.dense, whole.dense) == ("split", "replicated")
    few = launch(models["flash"], "f", split, 4)
    more = launch(models["flash"], "f", whole, 4)
    # all weights over four GPUs, and one sequence of a million tokens (3.69 GB)
    assert few.need == pytest.approx(models["flash"].bytes / 4 + 3.7e9, rel=0.06)
    assert more.need > few.need
    assert launch(models["flash"], "f", split, 8).copies == 2
    # Pro on the GPUs of a recipe for Flash
    assert not launch(models["pro"], "f", split, 4).fits


def test_choice_and_notes() -> None:
    assert parse_gpus("8xh200") == (8, "H200")
    recipe, notes = choose("sglang", "flash", (6, "H200"), "throughput")
    assert (recipe.gpus, recipe.goal) == (4, "throughput")
    assert notes == ["2 of 6 GPUs are not used: the recipe takes 4"]
    recipe, notes = choose("sglang", "pro", (8, "B200"), "throughput")
    assert notes == ["none is published for throughput on at most 8 B200: this one is for latency"]
    for engine, shape, gpus in (("vllm", "pro", (4, "H200")), ("dynamo", "flash", (8, "H100"))):
        with pytest.raises(ValueError, match=r"no recipe of \w+ for \w+ is published; there are: \dx"):
            choose(engine, shape, gpus, "latency")
    for text in ("H200", "0xH200", "8xK80", "8x", "eight", "9" * 5000 + "xH200", "100001xH200"):
        with pytest.raises(ValueError, match="--gpus must be a number and a name like 8xH200"):
            parse_gpus(text)


def test_conflicts_are_those_of_the_command(models: dict[str, ModelFiles]) -> None:
    recipe, _ = choose("sglang", "flash", (4, "B200"), "throughput")
    sources = [known.source for known in launch(models["flash"], "f", recipe, 4).conflicts]
    assert "InferenceX#3310" in sources
    assert "vllm#53257" not in sources
    assert "sglang#33083" not in sources  # without a draft head in use


def test_the_printed_command(capsys: Any) -> None:
    export("flash", engine="vllm", gpus="8xH200", goal="throughput")
    text = capsys.readouterr().out
    assert text.startswith("# github.com/vllm-project/recipes")
    assert "vllm serve deepseek-ai/DeepSeek-V4-Flash \\\n" in text
    assert "fits" in text
    assert "2 of these fill the GPUs" in text
    assert "    --port 8001\n" in text
    assert "dsv4 serve flash --engine http://127.0.0.1:8001 --engine http://127.0.0.1:8002" in text
    export("flash", engine="sglang")
    assert "4xH200" in capsys.readouterr().out
    export("pro", engine="dynamo", gpus="8xH200", json=True)
    made = json.loads(capsys.readouterr().out)
    assert made["recipe"]["context"] == 86016
    assert made["fits"]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_command_starts_what_calls_behind_dsv4_serve_need(engine: str, capsys: Any) -> None:
    """The option that the printed `dsv4 serve --engine` asks for where a server has no grammars of calls."""
    others = {"vllm": Vllm("m", lark=False), "sglang": Sglang(grammars="xgrammar")}
    lark = [("lark", 'start: "x"')]
    with pytest.raises(ValueError, match="tool calls and patterns need llguidance") as refusal:
        others[engine].check(SamplingParams(), RequestOptions(), lark)
    (option,) = re.findall(r"--\S*(?:grammar|structured)\S* \w+", str(refusal.value))
    export("flash", engine=engine, gpus="4xH200")
    printed = capsys.readouterr().out
    assert f"\n    {option} \\\n" in printed
    export("flash", engine=engine, gpus="4xH200", json=True)
    assert option in json.loads(capsys.readouterr().out)["lines"]


def test_many_copies_are_told_in_one_line(capsys: Any) -> None:
    export("flash", engine="vllm", gpus="100000xH200")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("--engine http://127.0.0.1:8008 ...")
    assert last.count("--engine") == 8


def test_folders_that_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^\S+nowhere: no such folder") as caught:
        export(str(tmp_path / "nowhere"), engine="vllm")
    assert str(caught.value).count("nowhere: ") == 1
    config = tiny_config()
    with pytest.raises(ValueError, match="no recipe is published for this shape"):
        shape_of(config)
    save_checkpoint(tmp_path / "tiny", config, tiny_model(config).state_dict(), LAYOUTS["fp32"])
    with pytest.raises(ValueError, match="no recipe is published for this shape"):
        export(str(tmp_path / "tiny"), engine="vllm", gpus="8xH200")
    (tmp_path / "tiny" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"dsv4 check .* lists all problems"):
        export(str(tmp_path / "tiny"), engine="vllm", gpus="8xH200")
