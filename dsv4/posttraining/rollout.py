"""Many rollouts at once: prompts to groups, over any TokenGenerator (report 5.10).

Each rollout is its own chain of requests: the policy's turn, what the environment says to it, the next turn. A chain
depends on its prompt, its seed and the weights alone, so neither its neighbours nor an interruption change it. What a
kill or a failed engine interrupts goes on from its tokens; it is never begun again, since short answers would then
survive more often than long ones (`dsv4.posttraining.wal` keeps the tokens).
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from dsv4.generation import (
    BusyError,
    ContextLengthError,
    FinishReason,
    RequestOptions,
    SamplingParams,
    TokenGenerator,
    WeightSink,
)
from dsv4.observe import log
from dsv4.posttraining.environment import Environment, Episode, More, Verdict
from dsv4.posttraining.foreign import ForeignFault, expected, told_as_fault
from dsv4.posttraining.trajectory import Trajectory
from dsv4.posttraining.types import Group, Prompt, Rollout
from dsv4.posttraining.wal import LogWriteError, RolloutLog

T = TypeVar("T")
_PAUSE, _LONGEST_PAUSE = 0.05, 5.0  # seconds before an engine is asked again


class EngineLostError(RuntimeError):
    """The engine did not come back in time. The batch can be resumed from its log."""


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """How rollouts are made.

    group: rollouts of a prompt. max_tokens: what the policy may say in one rollout, all turns together. concurrent:
    rollouts that run at once. temperature, top_p, top_k, min_p: as in SamplingParams; learning assumes temperature 1.
    seed: of the run. trace: record what the model chooses inside; truncated sampling (top_p, top_k, min_p) needs it.
    retries: how often the engine may end one rollout with an error and be asked again. patience: seconds that the
    engine may be gone before the batch stops. environment: seconds that an environment may take for one turn or one
    verdict; a rollout that waits longer is not learned from. behind: how many weights versions older than the newest
    the oldest token of a group may be, None = any; what is older is not learned from.

    Raises ValueError naming the field.
    """

    group: int = 16
    max_tokens: int = 1024
    concurrent: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    trace: bool = False
    retries: int = 3
    patience: float = 120.0
    environment: float = 1800.0
    behind: int | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("group", 1),
            ("max_tokens", 1),
            ("concurrent", 1),
            ("retries", 0),
            ("patience", 0),
            ("environment", 0),
            ("behind", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.params(1, 0)
        if self.truncates and not self.trace:
            raise ValueError("top_p, top_k and min_p need trace: learning repeats the truncation from what it records")

    @property
    def truncates(self) -> bool:
        """Whether some tokens cannot be chosen."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0

    def params(self, max_tokens: int, seed: int, ends: tuple[int, ...] = ()) -> SamplingParams:
        """Of one request."""
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=seed,
            stop_ids=ends,
            logprobs=True,
            trace=self.trace,
        )


def seed_of(run: int, batch: int, key: str, index: int) -> int:
    """The seed of one rollout: the same whenever, wherever and in whatever company it runs."""
    name = f"{run}/{batch}/{index}/{key}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") >> 1


@dataclass(slots=True)
class _Siblings:
    """What the rollouts of a group share. ready: the prompt is computed, so that others can reuse it."""

    prompt: Prompt
    owner: str
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    all: list[Trajectory] = field(default_factory=list)


class RolloutRunner:
    """Makes groups of rollouts.

    environments: by domain. end: the token that ends a turn. weights: says which version chooses tokens where the
    events do not. folder: where logs of batches are kept; without one an interrupted batch is lost.
    """

    def __init__(
        self,
        generator: TokenGenerator,
        environments: Mapping[str, Environment],
        settings: RolloutSettings,
        *,
        end: int,
        weights: WeightSink | None = None,
        folder: Path | None = None,
    ) -> None:
        self._generator, self._environments, self._settings = generator, environments, settings
        self._end, self._weights, self._folder = end, weights, folder
        self._places = asyncio.Semaphore(settings.concurrent)

    async def batch(self, prompts: Sequence[Prompt], number: int) -> list[Group]:
        """The groups of a batch in the order of its prompts: the same list however the run was interrupted."""
        groups = {group.prompt.key: group async for group in self.groups(prompts, number)}
        return [groups[prompt.key] for prompt in prompts]

    async def groups(self, prompts: Sequence[Prompt], number: int) -> AsyncGenerator[Group, None]:
        """Groups as they finish. number: of the batch; with the run's seed it decides all random numbers.

        Raises ValueError for a prompt twice in the batch or a domain without environment, OSError where the log cannot
        be written (the batch can be resumed then), EngineLostError, RuntimeError where too many foreign calls hang.
        """
        self._check(prompts)
        journal = RolloutLog.open(self._folder / file_name(number)) if self._folder is not None else None
        try:
            async with aclosing(_finished([self._group(prompt, number, journal) for prompt in prompts])) as finished:
                async for group in finished:
                    yield group
        finally:
            if journal is not None:
                journal.close()

    def forget(self, before: int) -> None:
        """Remove the logs of batches below `before`: a checkpoint that was trained on them is on the disk."""
        for file in self._folder.glob("batch-*.wal") if self._folder is not None else ():
            if file.name < file_name(before):
                file.unlink(missing_ok=True)

    def _check(self, prompts: Sequence[Prompt]) -> None:
        keys: set[str] = set()
        for prompt in prompts:
            if prompt.key in keys:
                raise ValueError(f"prompt {prompt.key} is in the batch twice; keys must be unique")
            keys.add(prompt.key)
            if prompt.domain not in self._environments:
                known = ", ".join(self._environments)
                raise ValueError(f"prompt {prompt.key}: domain must be one of {known}, got {prompt.domain!r}")

    async def _group(self, prompt: Prompt, number: int, journal: RolloutLog | None) -> Group:
        # NOTE: traces are lent within the group only, so with traces only the group may share prefixes
        owner = f"rollouts/{number}/{prompt.key}" if self._settings.trace else "rollouts"
        siblings = _Siblings(prompt, owner)
        for index in range(self._settings.group):
            known = None if journal is None else journal.recovered.get((prompt.key, index))
            siblings.all.append(Trajectory(prompt, index, known, journal))
        seeds = [seed_of(self._settings.seed, number, prompt.key, index) for index in range(len(siblings.all))]
        rolls = [self._roll(t, siblings, seed) for t, seed in zip(siblings.all, seeds, strict=True)]
        async for _ in _finished(rolls):
            pass
        rollouts = [self._rollout(trajectory, siblings) for trajectory in siblings.all]
        return self._fresh(Group(prompt, tuple(rollouts)))

    async def _roll(self, trajectory: Trajectory, siblings: _Siblings, seed: int) -> None:
        first = trajectory is siblings.all[0]
        try:
            if trajectory.verdict is not None:
                return
            if not first:
                await siblings.ready.wait()
            async with self._places:
                await self._play(trajectory, siblings, seed)
        finally:
            if first:
                siblings.ready.set()

    async def _play(self, trajectory: Trajectory, siblings: _Siblings, seed: int) -> None:
        """Turn by turn to the verdict."""
        try:
            # a ValueError here is about the prompt or the log, which others must mend: the batch stops
            with told_as_fault("the environment", passing=ValueError):
                episode = self._environments[siblings.prompt.domain].start(siblings.prompt)
                for tokens, more in trajectory.turns():
                    episode.replay(tokens, more)
            while True:
                finish = await self._speak(trajectory, siblings, seed)
                if finish is FinishReason.ERROR:
                    return
                with told_as_fault("the environment"):
                    turn = self._awaited(episode.turn(trajectory.turn, finish), "a turn")
                    more = expected(await turn, More | None, "a turn")
                if more is None or not self._fits(trajectory, more):
                    break
                trajectory.insert(more)
            await self._judge(trajectory, episode, finish if more is None else FinishReason.LENGTH)
        except ForeignFault as error:
            self._fail(trajectory, str(error))

    async def _judge(self, trajectory: Trajectory, episode: Episode, finish: FinishReason) -> None:
        with told_as_fault("the environment"):
            judged = await self._awaited(episode.verdict(finish), "the verdict")
            verdict = expected(judged, Verdict, "the verdict").checked()
        if verdict.error is not None:
            log("rollout_not_judged", prompt=trajectory.prompt.key, index=trajectory.index, error=verdict.error)
        trajectory.end(finish, verdict)

    async def _awaited(self, answer: Awaitable[T], what: str) -> T:
        """What an environment answers. Raises ForeignFault where it takes longer than it may."""
        clock = asyncio.timeout(self._settings.environment)
        try:
            async with clock:
                return await answer
        except TimeoutError as error:
            if not clock.expired():  # the environment's own
                raise
            seconds = f"{self._settings.environment:g} s"
            raise ForeignFault(f"the environment took more than {seconds} for {what}") from error

    def _fail(self, trajectory: Trajectory, error: str) -> FinishReason:
        log("rollout_failed", prompt=trajectory.prompt.key, index=trajectory.index, error=error)
        trajectory.end(FinishReason.ERROR, Verdict(None, error=error))
        return FinishReason.ERROR

    def _fits(self, trajectory: Trajectory, more: More) -> bool:
        """Whether the policy can still say something after what the environment says."""
        length = len(trajectory.all) + len(more.tokens)
        return self._left(trajectory) > 0 and length < self._generator.context_length

    def _left(self, trajectory: Trajectory) -> int:
        return self._settings.max_tokens - sum(trajectory.sampled)

    async def _speak(self, trajectory: Trajectory, siblings: _Siblings, seed: int) -> FinishReason:
        """One turn of the policy, over as many requests as it takes."""
        failed, lost = 0, None
        while trajectory.finish is None:
            if self._left(trajectory) <= 0:
                trajectory.cut()
                break
            before = len(trajectory.all)
            try:
                reason = await self._request(trajectory, siblings, seed)
            except LogWriteError:
                raise
            except ContextLengthError:
                if not trajectory.sampled:
                    length, room = len(trajectory.all), self._generator.context_length
                    return self._fail(trajectory, f"the prompt has {length} tokens, and the context {room}")
                trajectory.cut()
                break
            except BusyError:
                await asyncio.sleep(_PAUSE)
                continue
            except ValueError as error:
                return self._fail(trajectory, f"the engine refuses the prompt: {error}")
            except (RuntimeError, OSError) as error:
                lost = time.monotonic() if lost is None or len(trajectory.all) > before else lost
                await self._wait_for_engine(trajectory, lost, error)
                continue
            if reason is None:
                continue
            failed += 1
            if failed > self._settings.retries:
                return self._fail(trajectory, f"the engine failed {failed} times: {reason}")
            log("rollout_continues", prompt=siblings.prompt.key, index=trajectory.index, failed=failed, error=reason)
        assert trajectory.finish is not None
        return trajectory.finish

    async def _wait_for_engine(self, trajectory: Trajectory, lost: float, error: Exception) -> None:
        """The engine is gone: it may come back. No rollout ends by that, or long ones would end more often."""
        gone, reason = time.monotonic() - lost, str(error) or type(error).__name__
        if gone > self._settings.patience:
            raise EngineLostError(
                f"the engine is gone for {gone:.0f} s ({reason}); the batch can be resumed"
            ) from error
        log("rollout_waits", prompt=trajectory.prompt.key, index=trajectory.index, error=reason)
        await asyncio.sleep(min(_LONGEST_PAUSE, _PAUSE + gone / 4))

    async def _request(self, trajectory: Trajectory, siblings: _Siblings, seed: int) -> str | None:
        """Go on from the tokens so far, to the end of the turn. Returns the reason where the engine ends the request
        with an error of its own; raises what the engine raises, RuntimeError where it ends without a reason."""
        params = self._settings.params(self._left(trajectory), seed, (self._end,))
        options = RequestOptions(siblings.owner, cache_points=(len(siblings.prompt.tokens) - 1,))
        version = self._version()
        events = self._generator.stream(list(trajectory.all), params, options)
        try:
            async for event in events:
                if event.finish is FinishReason.ERROR:
                    return event.error or "it does not say why"
                if event.finish is FinishReason.ABORT:
                    raise RuntimeError(event.error or "the engine ended the request")
                trajectory.take(event, version)
                siblings.ready.set()
        finally:
            # the protocol promises an iterator; only generators have something to close
            if isinstance(events, AsyncGenerator):
                await events.aclose()
        if trajectory.finish is None:
            raise RuntimeError("the engine ended an answer without a reason")
        return None

    def _version(self) -> int:
        return 0 if self._weights is None else self._weights.version

    def _rollout(self, trajectory: Trajectory, siblings: _Siblings) -> Rollout:
        if not self._settings.trace or trajectory.verdict is None or trajectory.verdict.reward is None:
            return trajectory.rollout(None)
        # the last token was never computed: nothing follows it
        end = len(trajectory.all) - 1
        trajectory.pieces.borrow((other.pieces for other in siblings.all if other is not trajectory), end)
        try:
            return trajectory.rollout(trajectory.pieces.whole(end))
        except ValueError as error:
            return trajectory.rollout(None, str(error))

    def _fresh(self, group: Group) -> Group:
        """The group, without rewards where a token of it is too old. All of it: without its longest rollouts alone,
        which are the oldest, short answers would look better than they are."""
        if self._settings.behind is None:
            return group
        versions = [
            version
            for rollout in group.rollouts
            for version, sampled in zip(rollout.versions, rollout.sampled, strict=True)
            if sampled
        ]
        newest = max([self._version(), *versions])
        if newest - min(versions, default=newest) <= self._settings.behind:
            return group
        error = f"stale: tokens of version {min(versions)}, the newest is {newest}"
        log("group_stale", prompt=group.prompt.key, error=error)
        return replace(group, rollouts=tuple(replace(r, reward=None, error=r.error or error) for r in group.rollouts))


async def _finished(work: Sequence[Coroutine[Any, Any, T]]) -> AsyncGenerator[T, None]:
    """Results as they come. The first failure is raised, and ends the rest."""
    tasks = [asyncio.create_task(part) for part in work]
    try:
        for task in asyncio.as_completed(tasks):
            yield await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def file_name(number: int) -> str:
    """Of the log of a batch, in a folder of a run."""
    return f"batch-{number:08d}.wal"
