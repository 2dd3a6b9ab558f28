"""The write-ahead log: what was killed goes on from its tokens, and lengths have no bias."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from array import array
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dsv4.generation import FinishReason, TokenTrace
from dsv4.posttraining import wal
from dsv4.posttraining.environment import More, Verdict
from dsv4.posttraining.rollout import RolloutRunner, RolloutSettings, file_name
from dsv4.posttraining.types import Group
from dsv4.posttraining.wal import Ended, LogWriteError, RolloutLog, SampledToken
from tests.conftest import ROOT
from tests.posttraining.policies import END, Killed, Lengths, Mortal, babble, prompts, run

SETTINGS = RolloutSettings(group=4, max_tokens=10_000, concurrent=1000)
ENTRIES = [
    TokenTrace(0, {0: [array("I", [3, 1])] * 3}, {1: [range(0), range(1), array("I", [0, 2])]}, [None] * 3),
    SampledToken(5, -0.125, 3, kept=array("I", [5, 9]), mass=-0.5),
    SampledToken(END, -1e-300, 3, FinishReason.STOP),
    More((7, 8), {"results": ["a😀 <｜User｜>"], "failed": 0}),
    Ended(FinishReason.LENGTH),
    Ended(FinishReason.LENGTH, Verdict(0.5, {"turns": 2.0}, None)),
]


def batch(folder: Path | None, generator: Any, environment: Lengths | None = None) -> list[Group]:
    environment = environment or Lengths()
    return run(RolloutRunner(generator, {"math": environment}, SETTINGS, end=END, folder=folder).batch(prompts(6), 3))


def written(path: Path) -> bytes:
    journal = RolloutLog.open(path)
    number = journal.begin("math/0", 2, (0, 5, 10))
    journal.append(number, *ENTRIES[:2])
    for entry in ENTRIES[2:]:
        journal.append(number, entry)
    journal.close()
    journal.close()
    return path.read_bytes()


def test_entries_come_back_as_they_were(tmp_path: Path) -> None:
    written(tmp_path / "log")
    journal = RolloutLog.open(tmp_path / "log")
    (found,) = journal.recovered.values()
    assert found.entries[1:] == ENTRIES[1:]
    trace = found.entries[0]
    assert isinstance(trace, TokenTrace)
    assert isinstance(ENTRIES[0], TokenTrace)
    assert (trace.first, trace.experts, trace.entries) == (0, ENTRIES[0].experts, ENTRIES[0].entries)
    assert journal.begin("math/1", 0, (1,)) == 1, "numbers go on"
    journal.close()


def test_a_torn_end_is_cut_off_wherever_it_was_torn(tmp_path: Path) -> None:
    data, file = written(tmp_path / "whole"), tmp_path / "torn"
    lengths = set()
    for size in [*range(0, len(data), 5), len(data)]:
        file.write_bytes(data[:size])
        journal = RolloutLog.open(file)
        entries = [entry for found in journal.recovered.values() for entry in found.entries]
        assert entries[1:] == ENTRIES[1 : len(entries)]
        lengths.add(len(entries))
        number = journal.begin("new", 0, (1,))
        journal.append(number, ENTRIES[1])
        journal.close()
        again = RolloutLog.open(file)
        assert again.recovered["new", 0].entries == [ENTRIES[1]], "what follows the cut can be read"
        again.close()
    assert lengths == set(range(7))


def test_damage_within_a_record_ends_what_is_believed(tmp_path: Path) -> None:
    data, file = written(tmp_path / "whole"), tmp_path / "damaged"
    for at in range(len(wal.MAGIC), len(data), 7):
        file.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        journal = RolloutLog.open(file)
        entries = [entry for found in journal.recovered.values() for entry in found.entries]
        assert len(entries) < len(ENTRIES)
        assert entries[1:] == ENTRIES[1 : len(entries)]
        journal.close()


def test_another_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("precious")
    with pytest.raises(ValueError, match="log: not a log of rollouts"):
        RolloutLog.open(tmp_path / "log")
    assert (tmp_path / "log").read_text() == "precious"


def test_a_log_of_other_prompts_is_refused(tmp_path: Path) -> None:
    batch(tmp_path, babble())
    changed = [p if i else type(p)(p.key, (9, 9), p.domain) for i, p in enumerate(prompts(6))]
    runner = RolloutRunner(babble(), {"math": Lengths()}, SETTINGS, end=END, folder=tmp_path)
    with pytest.raises(ValueError, match="prompt math/0 had other tokens when it was logged; remove the log"):
        run(runner.batch(changed, 3))


def test_a_finished_batch_is_read_and_not_generated_again(tmp_path: Path) -> None:
    groups = batch(tmp_path, babble(), Lengths(turns=2))
    engine = babble()
    assert batch(tmp_path, engine, Lengths(turns=2)) == groups
    assert not engine.calls


@pytest.mark.parametrize("turns", [1, 3])
def test_killed_runs_end_as_if_nothing_had_happened(tmp_path: Path, turns: int) -> None:
    expected = batch(None, babble(), Lengths(turns))
    rng, kills, environment = random.Random(turns), 0, Lengths(turns)
    groups: list[Group] | None = None
    while groups is None:
        engine = Mortal(babble(), [rng.randrange(80)], Killed)
        try:
            groups = batch(tmp_path, engine, environment)
        except Killed:
            kills += 1
            file = tmp_path / file_name(3)
            data = file.read_bytes()
            file.write_bytes(data[: len(data) - rng.randrange(min(40, len(data)))])  # and the machine loses its end
    assert groups == expected
    assert kills >= 3
    assert bool(environment.replayed) == (turns > 1)


def lengths_of(groups: list[Group]) -> list[int]:
    return [rollout.length for group in groups for rollout in group.rollouts]


def test_lengths_have_no_bias_and_restarts_would_have_one(tmp_path: Path) -> None:
    """The control: what was not finished begins again with other random numbers. Short answers survive."""

    def killed(folder: Path, restart: bool) -> list[int]:
        rng, done, attempt = random.Random(1), {}, 0
        wanted = {(prompt.key, index) for prompt in prompts(40) for index in range(4)}
        while set(done) != wanted:
            seed = RolloutSettings(group=4, max_tokens=10_000, concurrent=1000, seed=attempt if restart else 0)
            file = folder / (str(attempt) if restart else "kept")
            runner = RolloutRunner(
                Mortal(babble(), [rng.randrange(900)], Killed), {"math": Lengths()}, seed, end=END, folder=file
            )
            with suppress(Killed):
                run(runner.batch(prompts(40), 3))
            journal = RolloutLog.open(file / file_name(3))
            for name, found in journal.recovered.items():
                if any(isinstance(entry, Ended) and entry.verdict for entry in found.entries):
                    done.setdefault(name, sum(isinstance(entry, SampledToken) for entry in found.entries))
            journal.close()
            attempt += 1
        assert attempt > 2
        return list(done.values())

    unkilled = RolloutRunner(
        babble(), {"math": Lengths()}, RolloutSettings(group=4, max_tokens=10_000, concurrent=1000), end=END
    )
    true = lengths_of(run(unkilled.batch(prompts(40), 3)))
    assert sorted(killed(tmp_path / "resumed", restart=False)) == sorted(true)
    biased = killed(tmp_path / "restarted", restart=True)
    assert sum(biased) / len(biased) < 0.8 * sum(true) / len(true)
    assert 17 < sum(true) / len(true) < 23


SCRIPT = """
import sys
from pathlib import Path
from tests.posttraining.test_rollout_log import batch
from tests.posttraining.policies import Lengths, babble
engine = babble()
engine._delay = 0.001
print("ready", flush=True)
batch(Path(sys.argv[1]), engine, Lengths(2))
"""


def test_a_process_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    expected, kills, file = batch(None, babble(), Lengths(2)), 0, tmp_path / file_name(3)
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    size = 0
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], stdout=subprocess.PIPE, env=environ)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        while process.poll() is None and (not file.exists() or file.stat().st_size < size + 4000):
            time.sleep(0.001)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        process.stdout.close()
        size = file.stat().st_size
    engine = babble()
    assert batch(tmp_path, engine, Lengths(2)) == expected
    assert kills == 2
    resumed = [call.prompt for call in engine.calls if len(call.prompt) > 3]
    assert resumed, "nothing was in the middle of an answer"


def test_a_full_disk_stops_the_batch_which_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, real, room = batch(None, babble()), os.write, [3000]

    def write(descriptor: int, data: bytes) -> int:
        if len(data) > room[0] > 0:
            data, room[0] = data[: room[0] // 2], 0  # a part of a record
        elif room[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= len(data)
        return real(descriptor, data)

    monkeypatch.setattr(wal.os, "write", write)
    with pytest.raises(LogWriteError, match="rollouts cannot be logged: No space left on device") as caught:
        batch(tmp_path, babble())
    assert caught.value.filename == str(tmp_path / file_name(3))
    monkeypatch.undo()
    assert batch(tmp_path, babble()) == expected


def test_old_logs_are_forgotten(tmp_path: Path) -> None:
    runner = RolloutRunner(babble(), {"math": Lengths()}, SETTINGS, end=END, folder=tmp_path)
    for number in range(3):
        run(runner.batch(prompts(1), number))
    runner.forget(2)
    assert [file.name for file in tmp_path.iterdir()] == [file_name(2)]
