"""The architecture that the page of the model draws: its layers add up to the whole."""

import json

import pytest

from dsv4.cli.architecture import architecture
from dsv4.cli.inspect import find_config


@pytest.mark.parametrize("model", ["nano", "flash", "pro"])
def test_layers_add_up(model: str) -> None:
    name, config, folder = find_config(model)
    found = architecture(name, config, folder)
    layers, parts = found["layers"], found["parameters"]
    assert [layer["index"] for layer in layers] == list(range(config.num_hidden_layers))
    assert {layer["attention"] for layer in layers} <= {"swa", "csa", "hca"}
    experts = sum(layer["parameters"]["expert"] for layer in layers)
    assert experts == parts["routed_experts"]
    assert sum(layer["parameters"].get("indexer", 0) for layer in layers) == parts["indexers"]
    assert sum(layer["total"] - layer["active"] for layer in layers) == experts - parts["active_experts"]
    # what belongs to no layer: embedding, head, and the last connection and norm
    rest = parts["total"] - sum(layer["total"] for layer in layers) - parts["embedding"] - parts["head"]
    assert 0 < rest < 5 * config.hc_mult**2 * config.hidden_size
    assert sum(layer["kv_bytes_per_token"] for layer in layers) == pytest.approx(found["kv_bytes_per_token"])
    assert found["config"]["sliding_window"] == config.sliding_window
    json.dumps(found)
