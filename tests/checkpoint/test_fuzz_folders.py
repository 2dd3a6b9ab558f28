"""Random damage to a folder's files: check never raises, load raises ValueError or OSError, and they agree."""

import json
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

from dsv4.checkpoint import RELEASE, check_folder, open_folder, save_checkpoint, state_for
from dsv4.checkpoint.inventory import INDEX_NAME
from dsv4.testing.tiny import tiny_config, tiny_model

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2, 3, 16, 64, 10**9, 2**63, 1e300, 0.5, float("nan"), "", "x", "yarn", "\ud800", [], [0],
    [None], [4, 128], {}, {"a": 1}, {"type": "yarn"}, {"factor": 2}, "F32", "U8", [2**40, 2**40], "../x.safetensors",
)  # fmt: skip
FILES = ("config.json", INDEX_NAME, "generation_config.json", "model-00002-of-00007.safetensors")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "sound"
    config = tiny_config(n_routed_experts=2)
    save_checkpoint(folder, config, tiny_model(config).state_dict(), RELEASE)
    return folder


def _change_json(raw: Any, rng: random.Random) -> Any:
    """A JSON value with one place changed, removed or added."""
    if isinstance(raw, dict) and raw and rng.random() < 0.9:
        key = rng.choice(list(raw))
        if rng.random() < 0.15:
            return {name: value for name, value in raw.items() if name != key}
        if rng.random() < 0.1:
            return {
                **raw,
                rng.choice(["rope_parameters", "layer_types", "dspark_x", "eos_token_id", key]): rng.choice(VALUES),
            }
        return {**raw, key: _change_json(raw[key], rng)}
    if isinstance(raw, list) and raw and rng.random() < 0.6:
        at = rng.randrange(len(raw))
        return [*raw[:at], _change_json(raw[at], rng), *raw[at + rng.randrange(2) :]]
    return rng.choice(VALUES)


def _damage(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    kind = rng.random()
    if file.suffix == ".json" and kind < 0.7:
        raw = _change_json(json.loads(data), rng)
        file.write_text(json.dumps(raw), encoding="utf-8")
        return
    if file.suffix == ".safetensors" and kind < 0.5:
        size = int.from_bytes(data[:8], "little")
        header = json.dumps(_change_json(json.loads(data[8 : 8 + size]), rng)).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
        return
    head = min(len(data), 4000)
    if kind < 0.8:
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(head)] = rng.randrange(256)
    elif kind < 0.9:
        del data[rng.randrange(head) :]
    else:
        data[rng.randrange(head) : rng.randrange(head)] = rng.randbytes(rng.randrange(1, 9))
    file.write_bytes(data)


@pytest.mark.parametrize("seed", range(60))
def test_damage_ends_in_a_sentence(sound: Path, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    folder = shutil.copytree(sound, tmp_path / "m")
    for name in rng.sample(FILES, rng.choice([1, 1, 1, 2])):
        _damage(folder / name, rng)
    report = check_folder(folder)
    assert all(len(problem) < 2000 for problem in report.problems)
    loads = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            opened = open_folder(folder)
            for mode in ("release", "fp32"):
                dict(state_for(opened.config, opened.reader, mode))
        except (ValueError, OSError):
            loads = False
    generation = any("generation_config.json" in problem for problem in report.problems)
    assert report.ok == loads or (generation and len(report.problems) == 1)
