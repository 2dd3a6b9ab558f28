"""Whole runs: they learn, resume bit for bit, survive being killed, go back after a spike."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dsv4.model.transformer import Transformer
from dsv4.training.curves import report_html
from dsv4.training.logbook import Logbook, open_tracker, read_log
from tests.conftest import ROOT
from tests.training.runs import raw_recipe, trainer


def states_equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(states_equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(states_equal, a, b))  # type: ignore
    return a == b


def state_of(folder: Path) -> dict:
    state = torch.load(folder / "state.pt", weights_only=True)
    state.pop("seconds")
    return state


def test_a_run_goes_through_its_stages_and_learns(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    lines = list(run.run())
    assert [x.step for x in lines] == list(range(len(lines)))
    assert list(dict.fromkeys(x.phase for x in lines)) == ["dense", "warmup", "sparse"]
    assert (lines[0].qat, lines[-1].qat) == (False, True)
    assert run.done
    assert run.tokens >= 3000
    first, last = lines[0].losses["next"], lines[-1].losses["next"]
    assert last < 0.8 * first
    assert all("recall_mass" in x.losses for x in lines if x.step % 4 == 0 and x.phase != "dense")
    assert 0 <= lines[0].extra["connection_error"] < 1e-2
    # what each expert got is told at measured steps: shares of the mean, so their mean is 1
    shares = lines[0].to_dict()["expert_load"]
    assert all(sum(layer) == pytest.approx(len(layer), abs=0.05) for layer in shares.values())
    assert max(max(layer) for layer in shares.values()) - 1 == pytest.approx(lines[0].max_violation, abs=0.01)
    assert "expert_load" not in lines[1].to_dict()


@pytest.mark.parametrize("numerics", ["fp32", "bf16"])
def test_resumed_is_uninterrupted(tmp_path: Path, numerics: str) -> None:
    changes = {"run": {**raw_recipe()["run"], "numerics": numerics}}
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = [x.losses for x in trainer(tmp_path / "whole", **changes).run()]
    parts = []
    for stop in (2, 5, 9, None):
        run = trainer(tmp_path / "parts", **changes)
        for line in run.run():
            parts.append(line.losses)
            if len(parts) == stop:
                run.save()
                break
    assert parts == whole
    assert states_equal(state_of(tmp_path / "parts"), state_of(tmp_path / "whole"))


def test_rotary_tables_follow_the_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made when a stage needs others, and by a run that goes on, whatever a new model has."""
    early = {"tokens": 600, "length": 64, "phase": "dense", "yarn": False}
    stages = [early, {"tokens": 600, "length": 64, "phase": "dense", "yarn": True}]
    changes = {"stages": stages, "qat_from": None}
    asked: list[bool] = []
    make = Transformer.use_yarn

    def told(model: Transformer, on: bool) -> None:
        asked.append(on)
        make(model, on)

    run = trainer(tmp_path, **changes)
    monkeypatch.setattr(Transformer, "use_yarn", told)
    run.advance()
    run.advance()
    run.save()
    assert asked == [False]
    plain = run.model.rotary.long_P.clone()
    again = trainer(tmp_path, **changes)
    asked.clear()
    while not again.done:
        tokens = again.tokens
        again.advance()
        assert torch.equal(again.model.rotary.long_P, plain) == (tokens < 600)
    assert asked == [False, True]


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.advance()
    run.save()
    with pytest.raises(ValueError, match="made with another recipe: seed differs"):
        trainer(tmp_path, seed=4)


def test_a_spike_takes_the_run_back(tmp_path: Path) -> None:
    stages = [{"tokens": 12000, "length": 64, "phase": "dense"}]
    recovery = {"snapshot_every": 4, "margin": 1, "hold": 5}
    run = trainer(tmp_path, stages=stages, recovery=recovery, qat_from=None)
    lines = [run.advance() for _ in range(24)]
    with torch.no_grad():
        run.model.head.weight.mul_(1e4)  # what a bad update does
    hit = run.advance()
    assert hit.spike is not None
    assert hit.back_to is not None
    assert hit.back_to < hit.step
    after = [run.advance() for _ in range(12)]
    assert after[0].step == hit.back_to
    assert after[0].anticipating
    assert not after[-1].anticipating
    assert max(x.losses["next"] for x in after) < 1.5 * lines[20].losses["next"]


KILLED = """
import sys
from pathlib import Path
from dsv4.training.logbook import Logbook
from tests.training.runs import trainer
folder = Path(sys.argv[1])
run = trainer(folder, run={"save_seconds": 0.0, "recall_every": 4, "recall_queries": 2})
log = Logbook(folder / "log.jsonl", run.step)
for line in run.run():
    log.write(line.to_dict())
"""


def test_kill_9_loses_nothing_but_time(tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    list(trainer(tmp_path / "whole").run())
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    threads = torch.get_num_threads()
    environment["OMP_NUM_THREADS"] = str(threads)
    process = subprocess.Popen(command, env=environment)
    log = tmp_path / "killed" / "log.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not log.exists() or log.read_text().count("\n") < 4):
        time.sleep(0.02)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run(command, env=environment, check=True)
    ours, whole = state_of(tmp_path / "killed"), state_of(tmp_path / "whole")
    assert states_equal(ours["model"], whole["model"])
    assert states_equal(ours["optimizers"], whole["optimizers"])
    steps = [line["step"] for line in read_log(log)]
    assert steps == list(range(len(steps)))


def test_the_log_drops_what_is_done_again(tmp_path: Path) -> None:
    log = Logbook(tmp_path / "log.jsonl")
    for step in range(5):
        log.write({"step": step, "loss": 1 / 3})
    log.close()
    with (tmp_path / "log.jsonl").open("a") as out:
        out.write('{"step": 5, "lo')  # cut off by a crash
    Logbook(tmp_path / "log.jsonl", 3).close()
    assert [x["step"] for x in read_log(tmp_path / "log.jsonl")] == [0, 1, 2]


def test_trackers_get_the_numbers(tmp_path: Path) -> None:
    class Kept:
        def __init__(self) -> None:
            self.seen: list[tuple[int, dict[str, float]]] = []

        def log(self, numbers: dict[str, float], step: int) -> None:
            self.seen.append((step, numbers))

        def close(self) -> None:
            self.seen.append((-1, {}))

    kept = Kept()
    log = Logbook(tmp_path / "log.jsonl", 0, (kept,))
    log.write({"step": 2, "next": 1.5, "phase": "dense"})
    log.close()
    assert kept.seen == [(2, {"next": 1.5}), (-1, {})]
    with pytest.raises(ValueError, match="--track must be one of trackio, tensorboard, wandb, got 'x'"):
        open_tracker("x", "n", tmp_path, {})


def test_the_report_holds_the_runs() -> None:
    lines = [{"step": i, "tokens": 10 * i, "next": 2.0 - i / 10} for i in range(5)]
    html = report_html("two </script> runs", {"a": lines, "b": lines})
    data = json.loads(html.split("const data = ", 1)[1].split(";\n", 1)[0].replace("<\\/", "</"))
    assert data["runs"]["a"] == lines
    assert "two </script>" not in html
