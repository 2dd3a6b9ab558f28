"""Rollout workers as Ray actors, so that many machines serve one batch (pip install ray). The same worker runs without
Ray in one process.

A worker makes whole groups. A group depends on its prompt, the batch's number and the weights alone, so it does not
matter which worker makes it; where the workers share a folder, one goes on from what a dead one has logged.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from dsv4.generation import TokenGenerator, WeightSink
from dsv4.observe import log
from dsv4.posttraining.environment import Environment
from dsv4.posttraining.rollout import EngineLostError, RolloutRunner, RolloutSettings
from dsv4.posttraining.types import Group, Prompt
from dsv4.training.states import on_host

_PAUSE, _PATIENCE = 0.5, 120.0  # seconds between two calls of a worker that restarts, and until it counts as dead


@dataclass(slots=True)
class RolloutWorker:
    """Makes groups with an engine of its own. Arguments as in RolloutRunner; weights: where new ones go."""

    generator: TokenGenerator
    environments: Mapping[str, Environment]
    settings: RolloutSettings
    end: int
    weights: WeightSink | None = None
    folder: Path | None = None

    @property
    def version(self) -> int:
        """Of the weights that choose tokens."""
        return 0 if self.weights is None else self.weights.version

    async def group(self, prompt: Prompt, number: int) -> Group:
        """The group of one prompt of batch `number`, with a log of its own. Raises what RolloutRunner raises."""
        folder = None if self.folder is None else self.folder / _folder_name(prompt.key)
        runner = RolloutRunner(
            self.generator, self.environments, self.settings, end=self.end, weights=self.weights, folder=folder
        )
        (group,) = await runner.batch([prompt], number)
        return group

    async def publish(self, weights: Mapping[str, Any], version: int) -> None:
        """Take new weights."""
        if self.weights is None:
            raise ValueError("weights: this worker has no sink for them")
        await self.weights.publish(weights, version)


class _Actor:
    """A worker in a process of Ray. `build` runs there, also again after a restart: the weights are then old."""

    def __init__(self, build: Callable[[], RolloutWorker]) -> None:
        self._worker = build()

    async def group(self, prompt: Prompt, number: int, version: int) -> Group | None:
        """None where the weights are of another version."""
        if self._worker.version != version:
            return None
        return await self._worker.group(prompt, number)

    async def publish(self, weights: Mapping[str, Any], version: int) -> None:
        await self._worker.publish(weights, version)


class RayRollouts:
    """Spreads the prompts of a batch over workers. It is a WeightSink for all of them.

    build: makes a worker; it is pickled and runs in the worker's process. workers: how many. at_once: groups of one
    worker. deaths: how many deaths of workers one batch survives. options: of the actors (num_cpus, num_gpus, ...). Ray
    must be initialised.
    """

    def __init__(
        self,
        build: Callable[[], RolloutWorker],
        workers: int,
        *,
        at_once: int = 4,
        deaths: int = 8,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        ray: Any = import_module("ray")
        for name, value in (("workers", workers), ("at_once", at_once)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        # one more than the groups: weights come beside them
        made = ray.remote(_Actor).options(max_restarts=-1, max_concurrency=at_once + 1, **(options or {}))
        self.actors = [made.remote(build) for _ in range(workers)]
        self._died, self._put = ray.exceptions.RayActorError, ray.put
        self._restarting = ray.exceptions.ActorUnavailableError
        self._at_once, self._deaths = at_once, deaths
        self._published: Any = None
        self.version = 0

    async def publish(self, weights: Mapping[str, Any], version: int) -> None:
        """Give all workers new weights; those that die meanwhile get them when they are back."""
        self._published, self.version = self._put(on_host(dict(weights))), version
        sent = [actor.publish.remote(self._published, version) for actor in self.actors]
        for result in await asyncio.gather(*map(_awaited, sent), return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, self._died):
                raise result

    async def batch(self, prompts: Sequence[Prompt], number: int) -> list[Group]:
        """The groups in the order of the prompts. Raises EngineLostError when too many workers die, and what a worker
        raises."""
        waiting = list(reversed(prompts))
        done: dict[str, Group] = {}
        deaths = 0

        async def serve(actor: Any) -> None:
            nonlocal deaths
            alive = time.monotonic()
            while waiting:
                prompt = waiting.pop()
                try:
                    group = await actor.group.remote(prompt, number, self.version)
                    if group is None:
                        await actor.publish.remote(self._published, self.version)
                except self._died as error:
                    waiting.append(prompt)
                    await asyncio.sleep(_PAUSE)
                    if isinstance(error, self._restarting) and time.monotonic() - alive < _PATIENCE:
                        continue
                    deaths, alive = deaths + 1, time.monotonic()
                    log("rollout_worker_died", prompt=prompt.key, deaths=deaths, error=str(error)[-1000:])
                    if deaths > self._deaths:
                        raise EngineLostError(f"{deaths} calls of workers died in batch {number}") from error
                    continue
                alive = time.monotonic()
                if group is None:
                    waiting.append(prompt)
                else:
                    done[prompt.key] = group

        tasks = [asyncio.create_task(serve(actor)) for actor in self.actors for _ in range(self._at_once)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [done[prompt.key] for prompt in prompts]


async def _awaited(reference: Any) -> Any:
    return await reference


def _folder_name(key: str) -> str:
    """A prompt's key as the name of a folder."""
    return hashlib.blake2b(key.encode(), digest_size=12).hexdigest()
