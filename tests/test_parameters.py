"""The table of parameters is the model: every name and shape, and nobody else guesses from names."""

import ast

import pytest

from dsv4.config import ModelConfig
from dsv4.parameters import Mover, Role, Storage, is_expert, parameter_table
from dsv4.testing.tiny import tiny_config, tiny_model
from tests.conftest import ROOT

CONFIGS = [tiny_config(), tiny_config(compress_ratios=(0, 4, 16, 4, 0)), tiny_config(o_groups=1)]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_table_is_the_model(config: ModelConfig) -> None:
    model, table = tiny_model(config), parameter_table(config)
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == {n: p.shape for n, p in table.items()}
    assert {name for name, p in table.items() if p.mover is not Mover.NOTHING} == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("file", ["flash", "pro"])
def test_roles_and_storage_agree(file: str) -> None:
    table = parameter_table(ModelConfig.from_file(ROOT / "dsv4" / "configs" / f"{file}.json"))
    for name, p in table.items():
        assert (p.role is Role.EXPERT) == (p.storage is Storage.EXPERT) == is_expert(name), name
        assert not p.rows or sum(p.rows) == p.shape[0], name
        assert p.indexer == (".indexer." in name), name
        assert p.decay or len(p.shape) == 1 or name.endswith((".ape", ".tid2eid")), name


def test_no_other_file_tells_parameters_by_their_names() -> None:
    words = ("experts", "indexer", "compressor", "attn_sink", "wo_a", "gate.bias")
    found = []
    for file in sorted((ROOT / "dsv4").rglob("*.py")):
        if file.name == "parameters.py" or "checkpoint" in file.parts:
            continue  # the checkpoint's own spellings of foreign names are its subject
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            tests = isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn)
            text = node.left if tests and isinstance(node, ast.Compare) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str) and any(w in text.value for w in words):
                found.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert found == []
