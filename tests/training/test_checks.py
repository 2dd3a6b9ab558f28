"""What a whole run needs, told before the first step."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv4.training import checks
from dsv4.training.checks import check_codec, check_model, check_room, check_sources, layout_of, needs_of, remarks, size
from tests.training.runs import VOCABULARY, Letters, raw_recipe, recipe, trainer


def model(**changes: Any) -> dict[str, Any]:
    return {**raw_recipe()["model"], **changes}


@pytest.mark.parametrize(
    ("changes", "export", "message"),
    [
        ({"model": model(index_head_dim=16)}, "none", "model: index_head_dim must be a multiple of 32"),
        ({"model": model(moe_intermediate_size=48)}, "none", "model: moe_intermediate_size must be a multiple of 32"),
        ({"model": model(hidden_size=48), "qat_from": None}, "release", "model: hidden_size must be a multiple of 32"),
        (
            {"model": model(hidden_size=65536, n_routed_experts=4096)},
            "auto",
            r"model: weights, gradients, optimiser .* need .* TiB, this machine",
        ),
    ],
)
def test_models_that_cannot_end_well(changes: dict, export: str, message: str) -> None:
    made = recipe(**changes)
    with pytest.raises(ValueError, match=message):
        check_model(made, VOCABULARY, layout_of(made, export))


def test_odd_sizes_are_fine_where_nothing_is_quantised() -> None:
    made = recipe(model=model(index_head_dim=16, moe_intermediate_size=48), qat_from=None)
    layout = layout_of(made, "auto")
    assert layout is not None
    assert layout.name == "bf16"
    assert check_model(made, VOCABULARY, layout).vocab_size == VOCABULARY
    assert layout_of(made, "none") is None


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize("numerics", ["fp32", "bf16"])
def test_a_state_is_as_large_as_counted(tmp_path: Path, kind: str, numerics: str) -> None:
    run = trainer(tmp_path, optimizer={"kind": kind}, run={**raw_recipe()["run"], "numerics": numerics})
    run.advance()
    run.save()
    needs = needs_of(run.recipe, run.model.config, None)
    # names, shapes and the padding of some thousand small tensors come on top here, more than in any real model
    tensors = sum(t.numel() * t.element_size() for t in _tensors(torch.load(tmp_path / "state.pt", weights_only=True)))
    assert 0.9 * tensors < needs.state < 1.2 * tensors
    assert needs.disk == 3 * needs.state


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [found for part in parts for found in _tensors(part)]


def test_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe()
    needs = needs_of(made, made.config(VOCABULARY), layout_of(made, "auto"))
    check_room(tmp_path, needs)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: usage._replace(free=needs.disk - 1))
    with pytest.raises(ValueError, match=r"the run needs .* of room \(three states of .*, the disk has"):
        check_room(tmp_path, needs)
    (tmp_path / "state.pt").write_bytes(b"x")  # what is there will be replaced
    check_room(tmp_path, needs)


def test_a_tokenizer_without_the_tokens_of_fim(monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(data={**raw_recipe()["data"], "fim": 0.5})
    check_codec(made, Letters())

    def unknown(self: Letters, text: str) -> int:
        raise ValueError("not in the vocabulary")

    monkeypatch.setattr(Letters, "token_id", unknown)
    check_codec(recipe(), Letters())
    with pytest.raises(ValueError, match=r"data\.fim needs the token <｜fim▁begin｜>"):
        check_codec(made, Letters())


def test_missing_text_names_what_makes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    source = {"name": "s", "kind": "text", "path": "runs/corpus/stdlib"}
    with pytest.raises(
        ValueError, match=r"no files at runs/corpus/stdlib: .*`python3 -m recipes\.corpus stdlib` makes it"
    ):
        check_sources(recipe(data={**raw_recipe()["data"], "sources": [source]}))


def test_what_is_perhaps_not_meant_is_remarked() -> None:
    assert remarks(recipe()) == []
    late = {**raw_recipe()["lr"], "decay_to": 4000}
    assert "lr.decay_to 4,000 lies beyond the run's 3,000 tokens" in remarks(recipe(lr=late))[0]
    slow = {**late, "warmup": 3500, "decay_from": 3600}
    assert "lr.warmup 3,500 is not over" in remarks(recipe(lr=slow))[0]


def test_sizes_for_people() -> None:
    assert [size(n) for n in (12, 2048, 3 << 20, 5 << 40)] == ["12 B", "2.0 KiB", "3.0 MiB", "5.0 TiB"]
