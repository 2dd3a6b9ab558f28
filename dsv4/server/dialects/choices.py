"""Several answers to one request: `n` of chat and text completions, and the prompts of a text completion."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

from dsv4.answer import AnswerStep, TokenRecord
from dsv4.server.dialects.fields import between
from dsv4.server.dialects.job import AnswerJob
from dsv4.server.dialects.places import Places
from dsv4.server.dialects.run import Run

MOST_CHOICES = 128
# the field `n` of a request
Count = Annotated[int | None, between(1, MOST_CHOICES)]


def usage_of(jobs: Sequence[AnswerJob]) -> dict[str, Any]:
    """Token counts so far, in the official form. A prompt of several choices counts once."""
    prompt, reused = _prompts(jobs)
    completion = sum(job.answer.completion_tokens for job in jobs)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": reused},
        "completion_tokens_details": {"reasoning_tokens": sum(job.answer.reasoning_tokens for job in jobs)},
        "prompt_cache_hit_tokens": reused,
        "prompt_cache_miss_tokens": prompt - reused,
    }


def _prompts(jobs: Sequence[AnswerJob]) -> tuple[int, int]:
    """Tokens of all prompts, and those of them that came from the prefix cache."""
    own = [job for job in jobs if not job.repeats]
    return sum(len(job.prompt) for job in own), sum(job.reused for job in own)


@dataclass(slots=True)
class ChoicesRun(Run):
    """A run of one or several answers to one or several prompts. more: the jobs of all choices but the first, by
    prompt; those of one prompt but its first `repeat` it."""

    more: Sequence[AnswerJob]

    @property
    def jobs(self) -> tuple[AnswerJob, ...]:
        """The job of each choice."""
        return (self.job, *self.more)

    @property
    def over(self) -> bool:
        """Whether every choice is complete."""
        return all(job.answer.over for job in self.jobs)

    async def steps(self) -> AsyncGenerator[tuple[int, AnswerStep], None]:
        """The steps of all choices as they come, each with the index of its choice. Raises the errors of
        `AnswerJob.steps`; the other choices then end too.

        The further choices of a prompt begin with the first token of its first choice: then the prefix cache has the
        prompt, and it is computed once. An engine whose queue is full gets them one by one as places become free, and
        refuses the request only where it takes none of them.
        """
        if not self.more:
            async with aclosing(self.job.steps()) as steps:
                async for step in steps:
                    yield 0, step
            return
        places = Places()
        for job in self.jobs:
            job.places = places
        streams = [job.steps() for job in self.jobs]
        later = self._repeats()
        waiting: dict[asyncio.Future[AnswerStep | None], int] = {}
        try:
            self.job.started()  # it counts for all: nothing begins if the key has reached a limit
            waiting |= {asyncio.ensure_future(_anext(streams[first])): first for first in later}
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    index = waiting.pop(task)
                    step = task.result()
                    if step is not None:
                        waiting[asyncio.ensure_future(_anext(streams[index]))] = index
                    if self.jobs[index].tokens or step is None:
                        more = later.pop(index, ())
                        waiting |= {asyncio.ensure_future(_anext(streams[at])): at for at in more}
                    if step is not None:
                        yield index, step
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            for stream in streams:
                await stream.aclose()
            await self.close()  # a stream that has not begun closes nothing

    def _repeats(self) -> dict[int, list[int]]:
        """The index of the first choice of each prompt, with those of its further ones."""
        found: dict[int, list[int]] = {}
        first = 0
        for index, job in enumerate(self.jobs):
            if job.repeats:
                found[first].append(index)
            else:
                first = index
                found[first] = []
        return found

    async def finished(self) -> list[tuple[AnswerJob, list[TokenRecord]]]:
        """Run to the end; returns each choice with the log-probabilities of its text. Raises the errors of `steps`."""
        records: list[list[TokenRecord]] = [[] for _ in self.jobs]
        async with aclosing(self.steps()) as steps:
            async for index, step in steps:
                records[index] += step.logprobs
        return list(zip(self.jobs, records, strict=True))

    async def close(self) -> None:
        for job in self.jobs:
            await job.close()

    def report(self) -> dict[str, Any]:
        """The fields of all choices for the log line: the tokens together, the rest of the first."""
        if not self.more:
            return self.job.report()
        prompt, reused = _prompts(self.jobs)
        completion = sum(job.answer.completion_tokens for job in self.jobs)
        cost = round(sum(job.cost for job in self.jobs), 9)
        tokens = {"prompt_tokens": prompt, "cached_tokens": reused, "completion_tokens": completion}
        return {**self.job.report(), "choices": len(self.jobs), **tokens, "cost_usd": cost}


async def _anext(steps: AsyncGenerator[AnswerStep, None]) -> AnswerStep | None:
    return await anext(steps, None)
