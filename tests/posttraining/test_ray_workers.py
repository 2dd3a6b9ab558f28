"""The same worker in one process and as Ray actors, one of which is killed; skipped where Ray is not installed."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dsv4.posttraining.ray_workers import RayRollouts, RolloutWorker
from dsv4.posttraining.rollout import RolloutRunner
from tests.conftest import ROOT
from tests.posttraining.policies import END, Lengths, babble, prompts, run
from tests.posttraining.ray_policies import SETTINGS, Shift, worker


def expected(number: int, version: int) -> Any:
    weights = Shift()
    weights.version = version
    runner = RolloutRunner(babble(), {"math": Lengths(2)}, SETTINGS, end=END, weights=weights)
    return run(runner.batch(prompts(8), number))


def test_without_ray_a_worker_makes_the_same_groups(tmp_path: Path) -> None:
    async def groups() -> Any:
        own = worker(tmp_path)
        return [await own.group(prompt, 3) for prompt in prompts(8)]

    assert run(groups()) == expected(3, 0)


@pytest.fixture
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    path = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=path, _node_ip_address="127.0.0.1")
    yield ray
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_workers_of_which_one_is_killed(cluster: Any, tmp_path: Path) -> None:
    def build() -> RolloutWorker:
        (tmp_path / f"{os.getpid()}.pid").touch()
        return worker(tmp_path / "logs", delay=0.01)

    async def play() -> tuple[Any, Any]:
        pool = RayRollouts(build, 2, at_once=2)
        first = await pool.batch(prompts(8), 3)
        await pool.publish({"w": 7}, 7)
        made = asyncio.create_task(pool.batch(prompts(8), 4))
        while len(list(tmp_path.glob("logs/*/batch-00000004.wal"))) < 3:
            await asyncio.sleep(0.01)
        os.kill(int(next(tmp_path.glob("*.pid")).stem), signal.SIGKILL)
        return first, await made

    first, second = asyncio.run(asyncio.wait_for(play(), 300))
    assert first == expected(3, 0)
    assert second == expected(4, 7)
    assert len(list(tmp_path.glob("*.pid"))) == 3, "the dead worker was built again, and has the new weights"
