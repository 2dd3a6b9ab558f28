"""What a worker's process makes: it must be importable there, which test files are not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsv4.posttraining.ray_workers import RolloutWorker
from dsv4.posttraining.rollout import RolloutSettings
from tests.posttraining.policies import END, Lengths, babble

SETTINGS = RolloutSettings(group=2, max_tokens=400)


class Shift:
    """Weights whose only number is their version."""

    def __init__(self) -> None:
        self.version = 0

    async def publish(self, weights: Mapping[str, Any], version: int) -> None:
        assert weights == {"w": version}
        self.version = version


def worker(folder: Path | None = None, delay: float = 0.0) -> RolloutWorker:
    engine = babble()
    engine._delay = delay
    return RolloutWorker(engine, {"math": Lengths(2)}, SETTINGS, END, Shift(), folder)
