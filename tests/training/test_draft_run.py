"""Training of a draft head (DSpark): its loss against plain formulas, what moves, and a run from folder to folder."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dsv4.checkpoint import (
    FP32,
    RELEASE,
    CheckpointReader,
    check_folder,
    load_into,
    open_folder,
    save_checkpoint,
    state_for,
)
from dsv4.checkpoint.names import Layout
from dsv4.cli.train_draft import base_of, export_with_head
from dsv4.engine import Engine
from dsv4.generation import SamplingParams
from dsv4.model.dspark import BlockKeys
from dsv4.model.transformer import Transformer
from dsv4.testing.tiny import tiny_config, tiny_draft_config, tiny_model
from dsv4.training.batch import Batch
from dsv4.training.data import open_sources
from dsv4.training.draft_loss import Anchors, DraftTotals, draft_loss
from dsv4.training.draft_run import DraftTrainer, draft_model
from dsv4.training.recipe import Recipe
from dsv4.training.settings import DraftSettings
from tests.model.draft_context import ContextOnly
from tests.training.runs import Letters, raw_recipe

BLOCK = 5
HEAD = {"stages": 1, "markov_rank": 8, "target_layer_ids": [1, 3], "anchors": 0.3}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_anchors_stay_in_their_document_and_count_what_is_learned() -> None:
    learn = torch.tensor([0, 0, 1, 1, 0, 1, 1, 1.0, 1, 0, 0, 1])
    batch = Batch(torch.arange(12), (8, 1, 3), learn)
    found = Anchors.draw(batch, 1.0, 3, generator())
    assert found.rows == (1, 2, 4, 5, 6, 10)  # before each learned token but a document's first
    assert found.places == (1, 2, 4, 5, 6, 1)
    assert found.counts == (2, 1, 3, 2, 1, 1)
    few = Anchors.draw(batch, 0.01, 3, generator())
    assert len(few.rows) == 2  # one of each document that has any
    assert set(few.rows) < set(found.rows)
    assert DraftTotals.of([found, found], 3, 2.0).at == (12, 6, 2)
    assert DraftTotals.of([found], 3, 2.0).weight == pytest.approx(6 + 3 * math.exp(-0.5) + math.exp(-1))


def test_the_loss_is_that_of_the_blocks_one_by_one() -> None:
    model = tiny_model(tiny_draft_config())
    model.stages[-1].markov_head.markov_w1.weight.data.mul_(10)
    settings = DraftSettings(anchors=0.4, decay=3.0, entropy=0.2, distance=0.7, confidence=0.5)
    tokens = torch.randint(0, 96, (150,), generator=generator())
    batch = Batch(tokens, (137, 13), (torch.rand(150, generator=generator(1)) > 0.2).float())
    anchors = Anchors.draw(batch, 0.1, BLOCK, generator(2))
    totals = DraftTotals.of([anchors], BLOCK, settings.decay)
    losses = draft_loss(model, batch, anchors, settings, totals)
    taps: list[Tensor] = []
    sums, weight, accepted = torch.zeros(3), 0.0, {k: list[float]() for k in range(BLOCK)}
    with torch.no_grad():
        x_TSD = model.hidden(tokens, model.pack([137, 13]), taps=taps)
        target = model.logits(x_TSD).softmax(-1)
        places = torch.cat([torch.arange(137), torch.arange(13)])
        rows = model.draft_context(torch.cat(taps, dim=1), places)
        for row, place, count in zip(anchors.rows, anchors.places, anchors.counts, strict=True):
            cache = ContextOnly(model.config, rows, BlockKeys([range(row - min(place, 128), row)], BLOCK))
            ids = torch.tensor([int(tokens[row]), 96, 96, 96, 96])
            y_TSD = model.draft_hidden(ids, model.pack([BLOCK], [place]), cache)  # type: ignore[arg-type]
            z, h = model.draft_rows(y_TSD)
            for k in range(count):
                embedded, bias = model.stages[-1].markov_head(tokens[row + k][None])
                drafted = (model.head(h[k][None]) + bias)[0].softmax(0)
                wanted = target[row + k]
                away = (drafted - wanted).abs().sum()
                sure = model.stages[-1].confidence_head(z[k][None], embedded)[0]
                accept = 1 - away / 2
                part = (-drafted[tokens[row + k + 1]].log(), away, F.binary_cross_entropy_with_logits(sure, accept))
                share = math.exp(-k / 3)
                sums, weight = sums + share * torch.stack(part), weight + share
                accepted[k].append(float(accept))
    found = [float(losses.parts[name]) for name in ("next", "distance", "confidence")]
    assert found == pytest.approx((sums / weight).tolist(), rel=1e-4)
    assert float(losses.total.detach()) == pytest.approx(0.2 * found[0] + 0.7 * found[1] + 0.5 * found[2], rel=1e-5)
    for k, values in accepted.items():
        assert float(losses.parts[f"accept_{k + 1}"]) == pytest.approx(sum(values) / len(values), rel=1e-4)


def folder_of(tmp_path: Path, layout: Layout = FP32, **changes: Any) -> Path:
    model = tiny_model(tiny_config(**changes))
    with torch.no_grad():
        model.head.weight.mul_(8)  # sure of itself, so that there is something to learn
    save_checkpoint(tmp_path / "base", model.config, model.state_dict(), layout)
    return tmp_path / "base"


def recipe_for(folder: Path, **changes: Any) -> Recipe:
    raw = raw_recipe(
        init=str(folder),
        stages=[{"tokens": 4000, "length": 96}],
        lr={"peak": 5e-3, "final": 5e-3, "warmup": 0, "decay_from": 4000, "decay_to": 4000},
        optimizer={"decay": 0.0},
        run={"save_seconds": 1e9, "recovery": False},
        **{"draft": HEAD, "qat_from": None, **changes},
    )
    del raw["model"]
    return Recipe.from_dict(raw)


def trainer_of(recipe: Recipe, place: Path) -> DraftTrainer:
    opened, codec = open_folder(Path(recipe.init or "")), Letters()
    place.mkdir(exist_ok=True)
    assert recipe.draft is not None
    model = draft_model(opened.config, recipe.draft, opened.reader, recipe.seed)
    return DraftTrainer(recipe, place, codec, open_sources(recipe, codec, place / "data"), model=model)


def test_only_the_head_moves_and_it_learns_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    recipe = recipe_for(folder_of(tmp_path))
    trainer = trainer_of(recipe, tmp_path / "run")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    records = []
    for record in trainer.run():
        records.append(record)
        if record.step == 3:
            trainer.save()
            other = trainer_of(recipe, tmp_path / "run")
    after = trainer.model.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if not name.startswith("mtp.")}
    first, last = records[0].losses, records[-1].losses
    assert last["accept_1"] > first["accept_1"] + 0.03
    assert last["confidence"] < first["confidence"]
    assert "accepted" in records[-1].summary()
    assert records[-1].mfu > 0
    assert [r.losses for r in other.run()] == [r.losses for r in records[4:]]
    resumed = other.model.state_dict()
    assert all(torch.equal(after[name], resumed[name]) for name in after)


def test_a_new_head_begins_as_the_layers_it_stands_for(tmp_path: Path) -> None:
    recipe = recipe_for(folder_of(tmp_path))
    opened = open_folder(Path(recipe.init or ""))
    assert recipe.draft is not None
    model = draft_model(opened.config, recipe.draft, opened.reader, 0)
    assert opened.config.num_nextn_predict_layers == 1
    assert model.config.num_nextn_predict_layers == 0
    for name in ("attn.wkv.weight", "ffn.experts.2.w1.weight", "hc_ffn_base", "ffn.gate.bias"):
        assert torch.equal(model.stages[0].state_dict()[name], model.layers[3].state_dict()[name])
    assert not model.stages[0].markov_head.markov_w2.weight.any()
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"mtp"}


def test_after_qat_from_the_head_computes_with_what_the_export_stores(tmp_path: Path) -> None:
    """Without it a head is learned in float32 and loses to the casts of the folder's layout."""
    folder = folder_of(tmp_path, RELEASE, quantized=True, expert_dtype="fp4")
    exact = trainer_of(recipe_for(folder), tmp_path / "exact").advance()
    recipe = recipe_for(folder, qat_from=0)
    trainer = trainer_of(recipe, tmp_path / "run")
    assert trainer.advance().losses["next"] != exact.losses["next"]
    masters = {name: value.clone() for name, value in trainer.model.named_parameters()}
    with trainer._fake:
        inside = {name: value.clone() for name, value in trainer.model.named_parameters()}
    changed = {name for name, value in masters.items() if not torch.equal(value, inside[name])}
    assert {name.split(".")[0] for name in changed} == {"mtp"}
    target = export_with_head(tmp_path / "run", base_of(recipe, tmp_path / "run"), trainer, RELEASE)
    read = dict(state_for(trainer.model.config, CheckpointReader(target), "fp32"))
    assert not [name for name, value in inside.items() if not torch.equal(read[name], value)]


def test_what_a_recipe_may_not_say_beside_a_head(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    with pytest.raises(ValueError, match="draft needs init"):
        Recipe.from_dict({"draft": HEAD})
    with pytest.raises(ValueError, match="model: comes from the folder that init names"):
        Recipe.from_dict(raw_recipe(init=str(folder), draft={"anchors": 0.3}))
    with pytest.raises(ValueError, match="dspark_target_layer_ids must be ascending layer numbers"):
        recipe_for(folder, draft={**HEAD, "target_layer_ids": [9]})
    with pytest.raises(ValueError, match=r"draft\.anchors must be in"):
        DraftSettings(anchors=0)


def test_an_exported_head_lies_beside_the_same_model(tmp_path: Path) -> None:
    recipe = recipe_for(folder_of(tmp_path))
    trainer = trainer_of(recipe, tmp_path / "run")
    trainer.advance()
    base = base_of(recipe, tmp_path / "run")
    target = export_with_head(tmp_path / "run", base, trainer, FP32)
    assert check_folder(target).ok
    old, new = base.reader, CheckpointReader(target)
    assert all(torch.equal(old.tensor(n), new.tensor(n)) for n in old.names() if not n.startswith("mtp."))
    opened = open_folder(target)
    assert opened.config.dspark is not None
    model = Transformer(opened.config)
    load_into(model, opened.config, opened.reader, "fp32")
    engine = Engine(model.eval(), context_length=128, speculate=True)
    engine.ends = frozenset()
    engine.submit([5, 6, 7], SamplingParams(max_tokens=20, temperature=0))
    while engine.busy:
        engine.step()
    assert engine.counts.drafted > 0
